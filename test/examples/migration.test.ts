import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import { afterAll, expect, inject, it } from 'vitest'
import { addPayments } from '../../examples/migration/set-nx.js'
import idempotency from '../../src/adapters/fastify.js'
import { redisStore } from '../../src/stores/redis.js'
import { docBlocks } from '../support/doc-blocks.js'
import { aKey, send } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { describeWith } from '../support/services.js'

it('the example of moving is what docs/migration.md shows', () => {
  const file = readFileSync(new URL('../../examples/migration/set-nx.ts', import.meta.url), 'utf8')
  const blocks = docBlocks('docs/migration.md').filter(({ language }) => language === 'ts')
  expect(blocks).toHaveLength(1)
  for (const { text } of blocks) expect(file).toContain(text)
})

describeWith(['redis'], 'moving from SET NX', () => {
  const redis = new Redis(inject('services').redisUrl, { lazyConnect: true })
  afterAll(() => redis.disconnect())

  type Pay = () => Promise<{ readonly status: number; readonly body: unknown }>

  /** The code of before, as many have written it. */
  function anOldApp(pay: Pay): FastifyInstance {
    const app = Fastify()
    app.post('/payments', async (request, reply) => {
      const name = `idem:${request.headers['idempotency-key']}`
      if ((await redis.set(name, 'running', 'EX', 86_400, 'NX')) === null) {
        const kept = (await redis.get(name)) ?? 'running'
        if (kept === 'running') return reply.code(409).send()
        const { status, body } = JSON.parse(kept)
        return reply.code(status).send(body)
      }
      const answer = await pay()
      await redis.set(name, JSON.stringify(answer), 'EX', 86_400)
      return reply.code(answer.status).send(answer.body)
    })
    return app
  }

  async function aNewApp(pay: Pay): Promise<FastifyInstance> {
    const app = Fastify()
    await app.register(idempotency, { store: redisStore(redis), scope: 'shared', namespace: randomUUID() })
    addPayments(app, redis, pay)
    return app
  }

  function payments() {
    let made = 0
    return {
      pay: async () => {
        made += 1
        return { status: 201, body: { id: `p-${made}` } }
      },
      made: () => made,
    }
  }

  it('pays once, whichever of both is asked, in whatever order and at once', async () => {
    const { pay, made } = payments()
    const apps = [anOldApp(pay), await aNewApp(pay), await aNewApp(pay)]
    for (let round = 1; round <= 20; round += 1) {
      const key = aKey()
      const at = (index: number) => send(apps[index % apps.length] as FastifyInstance, '/payments', { key })
      await Promise.all(Array.from({ length: 9 }, (_, index) => at(index)))
      const later = await Promise.all([at(0), at(1), at(2)])
      expect(later.map(({ status }) => status)).toEqual([201, 201, 201])
      expect(new Set(later.map(({ bytes }) => bytes.toString())).size).toBe(1)
      expect(made()).toBe(round)
    }
    for (const app of apps) await app.close()
  })

  it('runs nothing while an old process is at it, and has its answer afterwards', async () => {
    const { pay, made } = payments()
    const { opened, open } = gate()
    const began = gate()
    const old = anOldApp(async () => {
      began.open()
      await opened
      return pay()
    })
    const app = await aNewApp(pay)
    const key = aKey()
    const first = send(old, '/payments', { key })
    await began.opened
    expect(await send(app, '/payments', { key })).toMatchObject({ status: 503 })
    open()
    expect(await first).toMatchObject({ status: 201 })
    expect(await send(app, '/payments', { key })).toMatchObject({ status: 201, isReplay: false })
    expect(await send(app, '/payments', { key })).toMatchObject({ status: 201, isReplay: true })
    expect(made()).toBe(1)
    await old.close()
    await app.close()
  })
})

import { Readable } from 'node:stream'
import type { FastifyInstance, RouteHandlerMethod } from 'fastify'
import { describe, expect, it } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aKey, anApp } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'

/** A store that keeps an outcome some turns after it was asked to, and notes when. */
function slowStore(order: string[]): IdempotencyStore {
  const store = memoryStore()
  return {
    ...store,
    async complete(...args) {
      for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve))
      const kept = await store.complete(...args)
      order.push('kept')
      return kept
    },
  }
}

const nextTurn = () => new Promise((resolve) => setImmediate(resolve))

/** Handlers that say something else after their answer: the answer is what they said first, as without the plugin. */
const TALKATIVE: readonly (readonly [string, RouteHandlerMethod])[] = [
  [
    'sends, and returns nothing',
    async (_request, reply) => {
      reply.code(201).send({ first: true })
    },
  ],
  [
    'sends, waits, and returns nothing',
    async (_request, reply) => {
      reply.code(201).send({ first: true })
      await nextTurn()
    },
  ],
  [
    'sends, and throws',
    async (_request, reply) => {
      reply.code(201).send({ first: true })
      throw new Error('after its answer')
    },
  ],
  [
    'sends, and returns another answer',
    async (_request, reply) => {
      reply.code(201).send({ first: true })
      return { second: true }
    },
  ],
  [
    'sends twice',
    (_request, reply) => {
      reply.code(201).send({ first: true })
      reply.code(202).header('x-second', '1').send({ second: true })
    },
  ],
  [
    'is wrapped in one that waits for what it returns',
    async (_request, reply) => {
      const handler = () => reply.code(201).send({ first: true })
      await handler()
    },
  ],
  [
    'sends a stream, and returns nothing',
    async (_request, reply) => {
      reply
        .code(201)
        .type('application/json')
        .send(Readable.from(['{"first"', ':true}']))
    },
  ],
]

describe('fastify plugin › an answer that waits for the store', () => {
  it.each(TALKATIVE)('leaves once, and as it was kept, when a handler %s', async (_, handler) => {
    const order: string[] = []
    const { app } = await anApp((routes) => void routes.post('/', handler), { store: slowStore(order) })
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const post = async () => {
      const answer = await fetch(url, { method: 'POST', headers })
      order.push('answered')
      return { status: answer.status, second: answer.headers.get('x-second'), body: await answer.json() }
    }
    const headers = { 'idempotency-key': aKey() }
    const first = await post()
    expect(order).toEqual(['kept', 'answered'])
    expect(first).toEqual({ status: 201, second: null, body: { first: true } })
    expect(await post()).toEqual(first)
    await app.close()
  })

  it('lets the hooks after it fail as they do without it', async () => {
    const { send } = await anApp(
      (routes) => {
        routes.post('/', {
          onSend: async () => {
            throw new Error('the last hook')
          },
          handler: async () => ({ done: true }),
        })
      },
      { store: slowStore([]) },
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
  })
})

describe('fastify plugin › an answer that goes past Fastify', () => {
  const never = new Promise<never>(() => {})
  const ways: readonly (readonly [string, (app: FastifyInstance) => void])[] = [
    [
      'of an error handler',
      (app) => {
        app.setErrorHandler((_error, _request, reply) => {
          reply.raw.statusCode = 500
          reply.raw.end('raw')
        })
        app.post('/', async () => {
          throw new Error('it went wrong')
        })
      },
    ],
    [
      'of a hook',
      (app) => {
        app.addHook('preSerialization', async (_request, reply) => {
          reply.raw.end('raw')
          return never
        })
        app.post('/', async () => ({ done: true }))
      },
    ],
    [
      'of a handler that never comes to its end',
      (app) => {
        app.post('/', async (_request, reply) => {
          reply.raw.end('raw')
          return never
        })
      },
    ],
  ]

  it.each(ways)('ends the operation when it is that %s', async (_, define) => {
    const { app } = await anApp(define)
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const headers = { 'idempotency-key': aKey() }
    expect(await (await fetch(url, { method: 'POST', headers })).text()).toBe('raw')
    const retry = async () => (await fetch(url, { method: 'POST', headers })).json()
    await expect.poll(retry).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    await app.close()
  })
})

describe('fastify plugin › what runs once', () => {
  it('is the work of a promise that begins when it is asked', async () => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/', () => ({
        // biome-ignore lint/suspicious/noThenProperty: query builders are such promises
        then: (resolve: (value: unknown) => void) => {
          runs += 1
          resolve({ runs })
        },
      }))
    })
    expect((await send('/', { key: aKey() })).bytes.toString()).toBe('{"runs":1}')
    expect(runs).toBe(1)
  })

  it('is an operation whose claim was granted after somebody had answered: the retry runs it', async () => {
    const store = memoryStore()
    const claimed = gate()
    const answered = gate()
    let runs = 0
    const { send } = await anApp(
      (app) => {
        app.addHook('onRequest', async (request, reply) => {
          if (request.headers['x-late'] === undefined) return
          void claimed.opened.then(() => {
            reply.code(503).send({ late: true })
            answered.open()
          })
        })
        app.post('/', async () => {
          runs += 1
          return { runs }
        })
      },
      {
        store: {
          ...store,
          async claim(request) {
            const result = await store.claim(request)
            if (result.status === 'acquired' && runs === 0 && !isRetry) {
              claimed.open()
              await answered.opened
            }
            return result
          },
        },
      },
    )
    let isRetry = false
    const key = aKey()
    expect(await send('/', { key, headers: { 'x-late': '1' } })).toMatchObject({ status: 503 })
    expect(runs).toBe(0)
    isRetry = true
    await expect.poll(async () => (await send('/', { key })).status).toBe(200)
    expect(runs).toBe(1)
  })
})

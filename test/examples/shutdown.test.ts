import { readFileSync } from 'node:fs'
import Fastify from 'fastify'
import { Pool } from 'pg'
import { expect, inject, it } from 'vitest'
import { stop } from '../../examples/quickstart/shutdown.js'
import idempotency from '../../src/adapters/fastify.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { docBlock } from '../support/doc-blocks.js'
import { aKey } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { describeWith } from '../support/services.js'

const PAGE = 'docs/operations.md'

it('the shutdown is what docs/operations.md shows', () => {
  const file = readFileSync(new URL('../../examples/quickstart/shutdown.ts', import.meta.url), 'utf8')
  expect(file).toContain(docBlock(PAGE, 'app.close'))
})

describeWith(['postgres'], 'an application that is stopped', () => {
  const { postgresUrl } = inject('services')

  it('answers what is under way, keeps it, and leaves nothing unknown', async () => {
    const pool = new Pool({ connectionString: postgresUrl })
    const store = postgresStore(pool)
    await store.migrate()
    const app = Fastify()
    await app.register(idempotency, { store, scope: 'shared' })
    const began = gate()
    const finish = gate()
    let id = ''
    app.post('/payments', async () => {
      began.open()
      await finish.opened
      return { paid: true }
    })
    app.idempotency.on((event) => {
      if (event.type === 'claimed') id = event.operation.id
    })
    const address = await app.listen({ host: '127.0.0.1', port: 0 })
    const answer = fetch(`${address}/payments`, { method: 'POST', headers: { 'idempotency-key': aKey() } })
    await began.opened
    const stopped = stop(app, pool)
    finish.open()
    expect(await (await answer).json()).toEqual({ paid: true })
    await stopped
    const later = new Pool({ connectionString: postgresUrl })
    expect((await postgresStore(later).find(id))?.status).toBe('completed')
    await later.end()
  })

  it('has a table that takes the settings for autovacuum', async () => {
    const pool = new Pool({ connectionString: postgresUrl })
    await postgresStore(pool).migrate()
    await pool.query(docBlock(PAGE, 'autovacuum_vacuum_scale_factor'))
    const { rows } = await pool.query(
      "select reloptions from pg_class where oid = 'oncekey_records'::regclass",
    )
    expect(rows[0].reloptions).toContain('autovacuum_vacuum_scale_factor=0.02')
    await pool.query(
      'alter table oncekey_records reset (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor)',
    )
    await pool.end()
  })
})

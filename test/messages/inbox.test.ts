import { PGlite } from '@electric-sql/pglite'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, inject, it } from 'vitest'
import { memoryStore } from '../../src/stores/memory.js'
import { pglite, postgresJs, postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { INBOX_CASES } from '../support/inbox-cases.js'
import { describeWith } from '../support/services.js'

const { redisUrl, postgresUrl } = inject('services')

describeWith(['postgres'], 'createInbox › in the transactions of a pg Pool', () => {
  let pool: Pool
  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  })
  afterAll(() => pool.end())
  it.each(INBOX_CASES)('$name', ({ run }) => run(postgresStore(pool)))
})

describeWith(['postgres'], 'createInbox › in serializable transactions', () => {
  let pool: Pool
  beforeAll(async () => {
    const options = '-c default_transaction_isolation=serializable'
    pool = new Pool({ connectionString: postgresUrl, max: 10, options })
    await postgresStore(pool).migrate()
  })
  afterAll(() => pool.end())
  it.each(INBOX_CASES)('$name', ({ run }) => run(postgresStore(pool)))
})

describeWith(['postgres'], 'createInbox › in the transactions of postgres.js', () => {
  let sql: postgres.Sql
  beforeAll(async () => {
    sql = postgres(postgresUrl, { max: 10 })
    await postgresStore(postgresJs(sql)).migrate()
  })
  afterAll(() => sql.end())
  it.each(INBOX_CASES)('$name', ({ run }) => run(postgresStore(postgresJs(sql))))
})

describe('createInbox › in the transactions of PGlite', () => {
  let db: PGlite
  beforeAll(async () => {
    db = await PGlite.create()
    await postgresStore(pglite(db)).migrate()
  })
  afterAll(() => db.close())
  // A second transaction waits for the only connection, and not for a message.
  const cases = INBOX_CASES.filter(({ name }) => !name.startsWith('answers in-progress'))
  it.each(cases)('$name', ({ run }) => run(postgresStore(pglite(db))))
})

describe('createInbox › by leases in memory', () => {
  it.each(INBOX_CASES)('$name', ({ run }) => run(memoryStore()))
})

describeWith(['redis'], 'createInbox › by leases in Redis', () => {
  let redis: Redis
  beforeAll(() => {
    redis = new Redis(redisUrl)
  })
  afterAll(() => redis.quit())
  it.each(INBOX_CASES)('$name', ({ run }) => run(redisStore(redis)))
})

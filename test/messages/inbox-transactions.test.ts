import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { afterAll, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import {
  createInbox,
  highWatermark,
  type LogPosition,
  type TransactionalInbox,
} from '../../src/messages/inbox.js'
import { type PostgresStore, postgresStore } from '../../src/stores/postgres.js'
import { disturbedPool } from '../support/disturbed-pool.js'
import { gate } from '../support/gate.js'
import { aMessage, deadOf, messageEvents } from '../support/inbox-cases.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

describeWith(['postgres'], 'createInbox › with transactions', () => {
  let pool: Pool
  let store: PostgresStore
  let effects: string
  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    store = postgresStore(pool)
    await store.migrate()
  })
  beforeEach(async () => {
    effects = `effects_${randomUUID().slice(0, 8)}`
    await pool.query(`create table ${effects} (key text, unique (key) deferrable initially deferred)`)
  })
  afterAll(() => pool.end())

  type Options = Omit<Parameters<typeof createInbox>[0], 'store' | 'consumer'> & {
    readonly consumer?: string
  }

  function anInbox(options: Options = {}): TransactionalInbox {
    return createInbox({ store, consumer: randomUUID(), sweep: false, ...(options as object) })
  }

  const insert = (key: string) => [`insert into ${effects} values ($1)`, [key]] as [string, string[]]

  async function effectsOf(): Promise<readonly string[]> {
    const { rows } = await pool.query(`select key from ${effects} order by key`)
    return rows.map(({ key }) => key as string)
  }

  it('commits effect and entry together', async () => {
    const inbox = anInbox()
    const message = aMessage()
    const inside = gate()
    const finish = gate()
    const processing = inbox.processOnce(message, async ({ tx }) => {
      await tx.query(...insert(message.key))
      inside.open()
      await finish.opened
    })
    await inside.opened
    expect(await effectsOf()).toEqual([])
    finish.open()
    expect(await processing).toBe('processed')
    expect(await effectsOf()).toEqual([message.key])
  })

  it('rolls the effect back with a failed attempt', async () => {
    const inbox = anInbox()
    const message = aMessage()
    const attempt = inbox.processOnce(message, async ({ tx }) => {
      await tx.query(...insert(message.key))
      throw new Error('after the effect')
    })
    await expect(attempt).rejects.toThrow('after the effect')
    expect(await effectsOf()).toEqual([])
  })

  it('counts an attempt whose commit the database refuses', async () => {
    const inbox = anInbox({ attempts: { max: 2 } })
    const message = aMessage()
    const twice = (): Promise<string> =>
      inbox.processOnce(message, async ({ tx }) => {
        for (let time = 0; time < 2; time += 1) await tx.query(...insert(message.key))
      })
    await expect(twice()).rejects.toMatchObject({ code: '23505' })
    expect(await twice()).toBe('dead')
    expect(await effectsOf()).toEqual([])
  })

  it('does not count what the database does to any message', async () => {
    const inbox = anInbox({ attempts: { max: 1 } })
    const message = aMessage()
    const attempt = inbox.processOnce(message, async ({ tx }) => {
      const { rows } = await tx.query('select pg_backend_pid() as pid')
      await pool.query('select pg_terminate_backend($1)', [rows[0].pid])
      await tx.query('select 1')
    })
    await expect(attempt).rejects.toThrow()
    expect(await inbox.processOnce(message, () => {})).toBe('processed')
  })

  it('runs onDead in the transaction that marks the message', async () => {
    const inbox = anInbox({
      attempts: { max: 1 },
      async onDead({ key }, { tx }) {
        await (tx as Pool).query(...insert(key))
        if (failsAfter) throw new Error('no room for the dead')
      },
    })
    let failsAfter = true
    const message = aMessage()
    const failing = async (): Promise<never> => {
      throw new Error('poison')
    }
    await expect(inbox.processOnce(message, failing)).rejects.toThrow('poison')
    expect(await effectsOf()).toEqual([])
    expect(await deadOf(inbox as never)).toEqual([])
    failsAfter = false
    expect(await inbox.processOnce(message, failing)).toBe('dead')
    expect(await effectsOf()).toEqual([message.key])
  })

  it('counts a process that ends in the middle, where an earlier one may have ended', async () => {
    const consumer = randomUUID()
    const message = aMessage({ mayHaveCrashed: true })
    for (let crash = 1; crash <= 2; crash += 1) {
      // Its pool is cut off in the middle, as that of a process that dies.
      const dying = new Pool({ connectionString: postgresUrl, max: 2 })
      dying.on('error', () => {})
      const inbox = createInbox({ store: postgresStore(dying), consumer, sweep: false, attempts: { max: 2 } })
      const inside = gate()
      const never = inbox.processOnce(message, async ({ tx, attempt }) => {
        expect(attempt).toBe(crash)
        const { rows } = await tx.query('select pg_backend_pid() as pid')
        await pool.query('select pg_terminate_backend($1)', [rows[0].pid])
        inside.open()
        await new Promise(() => {})
      })
      never.catch(() => {})
      await inside.opened
    }
    const inbox = anInbox({ consumer, attempts: { max: 2 } })
    let runs = 0
    const count = (): void => {
      runs += 1
    }
    expect(await inbox.processOnce(message, count)).toBe('dead')
    expect(runs).toBe(0)
    expect(await deadOf(inbox as never)).toMatchObject([{ key: message.key }])
  })

  it.each([true, false])(
    'counts no delivery that meets somebody at the message, where one may have crashed (the first: %s)',
    async (mayHaveCrashed) => {
      const inbox = anInbox({ attempts: { max: 2 }, lockTimeout: '20ms' })
      const message = aMessage()
      const inside = gate()
      const finish = gate()
      const first = inbox.processOnce({ ...message, mayHaveCrashed }, async () => {
        inside.open()
        await finish.opened
        throw new Error('not now')
      })
      await inside.opened
      for (let delivery = 0; delivery < 5; delivery += 1)
        expect(await inbox.processOnce({ ...message, mayHaveCrashed: true }, () => {})).toBe('in-progress')
      finish.open()
      await expect(first).rejects.toThrow('not now')
      const seen: number[] = []
      const last = await inbox.processOnce(message, ({ attempt }) => void seen.push(attempt))
      expect([last, seen]).toEqual(['processed', [2]])
    },
  )

  it('gives up a handler that runs for longer than maxRun, and rolls it back', async () => {
    const inbox = anInbox({ maxRun: '50ms' })
    const message = aMessage()
    const attempt = inbox.processOnce(message, async ({ tx, signal }) => {
      await tx.query(...insert(message.key))
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      await new Promise(() => {})
    })
    await expect(attempt).rejects.toMatchObject({ code: 'IDEMPOTENCY_MAX_RUN_EXCEEDED' })
    expect(await effectsOf()).toEqual([])
  })

  it('processes a batch in one transaction, and calls its handler once', async () => {
    const inbox = anInbox()
    const messages = Array.from({ length: 20 }, () => aMessage())
    const transactions = new Set<string>()
    const results = await inbox.processBatch(messages, async (given, { tx }) => {
      expect(given).toHaveLength(20)
      for (const { message } of given) await tx.query(...insert(message.key))
      const { rows } = await tx.query('select pg_current_xact_id()::text as xid')
      transactions.add(rows[0].xid)
    })
    expect(new Set(results)).toEqual(new Set(['processed']))
    expect(transactions.size).toBe(1)
    expect(await effectsOf()).toEqual(messages.map(({ key }) => key).toSorted())
  })

  it('lets batches that overlap in opposite orders through, once each', async () => {
    const inbox = anInbox()
    const messages = Array.from({ length: 30 }, () => aMessage())
    const process = (batch: typeof messages) =>
      inbox.processBatch(batch, async (given, { tx }) => {
        for (const { message } of given) await tx.query(...insert(message.key))
      })
    const retried = async (batch: typeof messages): Promise<void> => {
      for (;;) {
        const isDone = await process(batch).then(
          () => true,
          () => false,
        )
        if (isDone) return
      }
    }
    await Promise.all([messages, messages.toReversed(), messages, messages.toReversed()].map(retried))
    expect(await effectsOf()).toEqual(messages.map(({ key }) => key).toSorted())
  })

  it('forgets a message after its window, and sweeps it', async () => {
    const inbox = anInbox({ window: '1s' })
    const message = aMessage()
    await inbox.processOnce(message, () => {})
    const rows = async () =>
      (await pool.query('select 1 from oncekey_records_inbox where consumer = $1', [inbox.consumer])).rows
        .length
    expect(await rows()).toBe(1)
    await expect.poll(() => inbox.processOnce(message, () => {}), { timeout: 5000 }).toBe('processed')
    // An entry of the index that sweeping uses stands for ten seconds: this one is put behind them.
    await pool.query(
      `update oncekey_records_inbox set expires_at = now() - interval '1 minute', expiry_bucket = expiry_bucket - 10
       where consumer = $1`,
      [inbox.consumer],
    )
    await store.sweep?.()
    expect(await rows()).toBe(0)
  })

  it('never sweeps the dead', async () => {
    const inbox = anInbox({ window: '1s' })
    await inbox.giveUp(aMessage(), new Error('unreadable'))
    const { rows } = await pool.query(
      'select expires_at::text, expiry_bucket from oncekey_records_inbox where consumer = $1',
      [inbox.consumer],
    )
    expect(rows).toEqual([{ expires_at: 'infinity', expiry_bucket: 2_147_483_647 }])
  })

  it.each([
    ['loses-answer', 'duplicate'],
    ['never-arrives', 'processed'],
  ] as const)('finds out at the next delivery what became of a commit that %s', async (how, next) => {
    const line = disturbedPool(pool)
    const inbox = createInbox({
      store: postgresStore(line),
      consumer: randomUUID(),
      sweep: false,
      attempts: { max: 1 },
    })
    const message = aMessage()
    const process = () =>
      inbox.processOnce(message, async ({ tx }) => {
        await tx.query(...insert(message.key))
      })
    line.disturbCommit(how)
    await expect(process()).rejects.toMatchObject({ code: 'IDEMPOTENCY_COMMIT_UNDECIDED' })
    expect(await process()).toBe(next)
    expect(await effectsOf()).toEqual([message.key])
  })

  it('enlists a message in a transaction of the application', async () => {
    const inbox = anInbox()
    const message = aMessage()
    const client = await pool.connect()
    const enlisted = async (end: 'commit' | 'rollback') => {
      await client.query('begin')
      const answer = await inbox.enlist(client, message)
      if (answer === 'fresh') await client.query(...insert(message.key))
      await client.query(end)
      return answer
    }
    expect(await enlisted('rollback')).toBe('fresh')
    expect(await enlisted('commit')).toBe('fresh')
    expect(await enlisted('commit')).toBe('duplicate')
    expect(await inbox.processOnce(message, () => {})).toBe('duplicate')
    expect(await effectsOf()).toEqual([message.key])
    client.release()
  })

  it('refuses to enlist where statements run each for itself, and enters nothing', async () => {
    const inbox = anInbox()
    const message = aMessage()
    await expect(inbox.enlist(pool, message)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_TRANSACTION_MISUSED',
    })
    expect(await inbox.processOnce(message, () => {})).toBe('processed')
  })

  it('says that an enlisted message is in progress', async () => {
    const inbox = anInbox({ lockTimeout: '50ms' })
    const message = aMessage()
    const [one, other] = [await pool.connect(), await pool.connect()]
    await one.query('begin')
    await other.query('begin')
    expect(await inbox.enlist(one, message)).toBe('fresh')
    await expect(inbox.enlist(other, message)).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    await other.query('rollback')
    await one.query('commit')
    for (const client of [one, other]) client.release()
  })

  it('keeps the lock timeout of the application in its own statements', async () => {
    const inbox = anInbox({ lockTimeout: '50ms' })
    const seen: unknown[] = []
    const { rows } = await pool.query('show lock_timeout')
    await inbox.processOnce(aMessage(), async ({ tx }) => {
      seen.push(...(await tx.query('show lock_timeout')).rows)
    })
    expect(seen).toEqual(rows)
  })

  it('reports each delivery with its result', async () => {
    const inbox = anInbox()
    const events = messageEvents(inbox as never)
    const message = aMessage({ keyKind: 'debezium', deliveryCount: 2 })
    await inbox.processOnce(message, () => {})
    expect(events).toEqual([
      {
        type: 'message',
        message: { consumer: inbox.consumer, source: 'payments', key: message.key, keyKind: 'debezium' },
        result: 'processed',
        attempt: 1,
        redelivered: true,
        durationMs: expect.any(Number),
      },
    ])
  })

  it.each([
    [{ mode: 'lease', strategy: highWatermark() }, /"strategy" needs transactions/],
    [{ mode: 'lease', lockTimeout: '1s' }, /"lockTimeout" says nothing/],
    [{ lease: '10s' }, /"lease" says nothing/],
    [{ lockTimeout: '1500ms' }, /at most half of "storeTimeout"/],
    [{ replayCache: false }, /"replayCache" is no option of an inbox/],
    [{ consumer: '' }, /"consumer" must be text/],
    [{ attempts: { max: 0 } }, /"attempts.max" must be a whole number/],
    [{ order: 'stop' }, /"order" must be 'skip' or 'block'/],
    [{ surprise: 1 }, /no option "surprise"/],
  ])('refuses the options %j', (options, message) => {
    expect(() => anInbox(options as Options)).toThrow(message)
  })

  describeWith(['postgres'], 'and a high watermark', () => {
    const at = (offset: number, timestampMs = 1000 + offset, more: Partial<LogPosition> = {}) => {
      const position = { topic: 'orders', partition: 0, offset: BigInt(offset), timestampMs, ...more }
      return { source: 'orders', key: `${position.partition}/${offset}`, position }
    }
    const watermarked = (options: Options = {}) => anInbox({ strategy: highWatermark(), ...options })
    const results = async (inbox: TransactionalInbox, offsets: readonly number[]) => {
      const found: string[] = []
      for (const offset of offsets) found.push(await inbox.processOnce(at(offset), () => {}))
      return found
    }

    it('processes what lies behind it, and keeps one row for a partition', async () => {
      const inbox = watermarked()
      expect(await results(inbox, [5, 6, 9, 9, 6, 10])).toEqual([
        'processed',
        'processed',
        'processed',
        'duplicate',
        'duplicate',
        'processed',
      ])
      const count = (table: string) =>
        pool.query(`select 1 from ${table} where consumer = $1`, [inbox.consumer])
      expect((await count('oncekey_records_marks')).rows).toHaveLength(1)
      expect((await count('oncekey_records_inbox')).rows).toHaveLength(0)
      expect(await inbox.processOnce(at(6, 1006, { partition: 1 }), () => {})).toBe('processed')
    })

    it('does not move when the attempt fails', async () => {
      const inbox = watermarked()
      await expect(
        inbox.processOnce(at(5), () => {
          throw new Error('not now')
        }),
      ).rejects.toThrow()
      expect(await results(inbox, [5, 5])).toEqual(['processed', 'duplicate'])
    })

    it('processes batches', async () => {
      const inbox = watermarked()
      const handled: bigint[] = []
      const process = (offsets: readonly number[]) =>
        inbox.processBatch(
          offsets.map((offset) => at(offset)),
          (given) => void handled.push(...given.map(({ message }) => message.position.offset)),
        )
      expect(await process([1, 2, 3])).toEqual(['processed', 'processed', 'processed'])
      expect(await process([2, 3, 4, 5])).toEqual(['duplicate', 'duplicate', 'processed', 'processed'])
      expect(handled).toEqual([1n, 2n, 3n, 4n, 5n])
    })

    it('stops at a topic that was made again, and skips nothing of it', async () => {
      const inbox = watermarked()
      await results(inbox, [0, 1, 2, 3])
      let runs = 0
      const again = (offset: number, timestampMs: number) =>
        inbox.processOnce(at(offset, timestampMs), () => {
          runs += 1
        })
      await expect(again(0, 5000)).rejects.toMatchObject({ code: 'IDEMPOTENCY_LOG_REPLACED' })
      await expect(
        inbox.processBatch([at(0, 5000), at(1, 5001)], () => {
          runs += 1
        }),
      ).rejects.toMatchObject({ results: [], cause: { code: 'IDEMPOTENCY_LOG_REPLACED' } })
      expect(runs).toBe(0)
      await inbox.reset({ source: 'orders' })
      expect(await again(0, 5000)).toBe('processed')
    })

    it('stops at a topic of another id, however far it has come', async () => {
      const inbox = watermarked()
      await inbox.processOnce(at(3, 1003, { topicId: 'first' }), () => {})
      const other = inbox.processOnce(at(4, 1004, { topicId: 'second' }), () => {})
      await expect(other).rejects.toMatchObject({ code: 'IDEMPOTENCY_LOG_REPLACED' })
    })

    it('stops before the first message that was ever seen', async () => {
      const inbox = watermarked()
      await results(inbox, [100])
      await expect(inbox.processOnce(at(99), () => {})).rejects.toMatchObject({
        code: 'IDEMPOTENCY_LOG_REPLACED',
      })
    })

    it('goes on behind a dead message, and processes it when it is redriven', async () => {
      const inbox = watermarked({ attempts: { max: 1 } })
      await results(inbox, [1])
      const dead = await inbox.processOnce(at(2), () => {
        throw new Error('poison')
      })
      expect(dead).toBe('dead')
      expect(await results(inbox, [3, 2])).toEqual(['processed', 'dead'])
      expect(await inbox.redrive({ source: 'orders', key: '0/2' })).toBe(true)
      expect(await results(inbox, [2, 2, 3, 4])).toEqual(['processed', 'duplicate', 'duplicate', 'processed'])
    })

    it('refuses a message without a position', async () => {
      await expect(watermarked().processOnce(aMessage(), () => {})).rejects.toMatchObject({
        code: 'IDEMPOTENCY_KEY_INVALID',
      })
    })
  })
})

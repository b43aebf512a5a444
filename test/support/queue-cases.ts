import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { expect, inject } from 'vitest'
import type { Consumption, ConsumptionEnd } from '../../src/messages/consumption.js'
import {
  createInbox,
  type InboxEvent,
  type InboxOptions,
  type MessageResult,
  type TransactionalContext,
  type TransactionalInbox,
  type TransactionalStore,
} from '../../src/messages/inbox.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { gate } from './gate.js'

/** What commits with a message in these cases. */
type Context = TransactionalContext<Pick<Pool, 'query'>>
export type QueueInbox = TransactionalInbox<Pick<Pool, 'query'>>
export type QueueHandler = (body: string, context: Context) => Promise<void>

/** A queue, or a stream, of a broker, with nothing in it. */
export interface Queue {
  /** The source of the keys of its messages. */
  readonly source: string
  /** Puts a message with an id of its own in it. */
  publish(body: string, id?: string): Promise<void>
  /** Consumes it, through a connection of its own. */
  consume(
    inbox: QueueInbox,
    handler: QueueHandler,
    options?: { readonly drainTimeout?: number },
  ): Promise<Consumption>
  /** Cuts off all that consume it, and counts what is not acknowledged. An acknowledgement may take a moment to count. */
  cutOff(): Promise<number>
}

/** One promise about the consumers of a queue, whatever the broker. */
export interface QueueCase {
  readonly name: string
  run(newQueue: (order: 'skip' | 'block') => Promise<Queue>): Promise<void>
}

const { postgresUrl } = inject('services')
const pool = new Pool({ connectionString: postgresUrl, max: 10 })

/** Makes the tables of the cases. */
export async function setUpQueueCases(): Promise<void> {
  await postgresStore(pool).migrate()
  // Workers of other test files do the same.
  await pool.query('create table if not exists queue_effects (body text not null)').catch(() => {})
  await pool.query('select from queue_effects limit 0')
}

/** Closes what the cases opened. */
export function tearDownQueueCases(): Promise<void> {
  return pool.end()
}

const ofThisTest = (): string => randomUUID()

/** An inbox of a consumer that no other test has, with the results of its messages. */
export function aQueueInbox(
  options: Partial<Omit<InboxOptions<Pick<Pool, 'query'>, TransactionalStore>, 'mode'>> = {},
) {
  const inbox: QueueInbox = createInbox({
    store: postgresStore(pool),
    consumer: `ledger-${randomUUID()}`,
    attempts: { max: 3, delay: 20 },
    lockTimeout: 20,
    sweep: false,
    ...options,
  })
  const results: MessageResult[] = []
  const events: InboxEvent[] = []
  inbox.on((event) => {
    events.push(event)
    if (event.type === 'message') results.push(event.result)
  })
  return { inbox, results, events }
}

/** Applies the effect of a message: adds a row. */
export const apply: QueueHandler = async (body, { tx }) => {
  await tx.query('insert into queue_effects (body) values ($1)', [body])
}

/** How often the effect of a message was applied. */
export async function effectsOf(body: string): Promise<number> {
  const { rows } = await pool.query('select count(*)::int as n from queue_effects where body = $1', [body])
  return rows[0].n
}

const eventually = { timeout: 20_000, interval: 20 }

export const QUEUE_CASES: readonly QueueCase[] = [
  {
    name: 'processes each message once, and acknowledges it',
    async run(newQueue) {
      const queue = await newQueue('skip')
      const { inbox, results } = aQueueInbox()
      const bodies = Array.from({ length: 5 }, ofThisTest)
      for (const body of bodies) await queue.publish(body)
      const consumption = await queue.consume(inbox, apply)
      await expect.poll(() => results.length, eventually).toBe(5)
      await consumption.stop()
      expect(await consumption.ended).toEqual({ reason: 'stopped' })
      expect(results).toEqual(bodies.map(() => 'processed'))
      expect(await Promise.all(bodies.map(effectsOf))).toEqual(bodies.map(() => 1))
      await expect.poll(() => queue.cutOff(), eventually).toBe(0)
    },
  },
  {
    name: 'acknowledges nothing before the commit, and knows again what was delivered again for that',
    async run(newQueue) {
      const queue = await newQueue('skip')
      const { inbox, results } = aQueueInbox()
      const body = ofThisTest()
      const applied = gate()
      const finish = gate()
      await queue.publish(body)
      const first = await queue.consume(inbox, async (given, context) => {
        await apply(given, context)
        applied.open()
        await finish.opened
      })
      await applied.opened
      await expect.poll(() => queue.cutOff(), eventually).toBe(1)
      let ended: ConsumptionEnd | undefined
      void first.ended.then((how) => {
        ended = how
      })
      expect(ended).toBeUndefined()
      finish.open()
      expect(await first.ended).toMatchObject({ reason: 'lost', error: expect.any(Error) })
      expect(results).toEqual(['processed'])
      await first.stop()

      const second = await queue.consume(inbox, () => expect.fail())
      await expect.poll(() => results, eventually).toEqual(['processed', 'duplicate'])
      await second.stop()
      expect(await effectsOf(body)).toBe(1)
      await expect.poll(() => queue.cutOff(), eventually).toBe(0)
    },
  },
  {
    name: 'gives up a poison message after its attempts, goes on, and processes it once when it is redriven',
    async run(newQueue) {
      const queue = await newQueue('skip')
      const { inbox, results, events } = aQueueInbox()
      const bodies = Array.from({ length: 6 }, ofThisTest)
      const poison = bodies[2] as string
      const attempts: number[] = []
      let isMended = false
      const handler: QueueHandler = async (body, context) => {
        await apply(body, context)
        if (body !== poison) return
        attempts.push(context.attempt)
        if (!isMended) throw new Error('no such account')
      }
      for (const body of bodies) await queue.publish(body, body)
      const consumption = await queue.consume(inbox, handler)
      await expect.poll(() => results.length, eventually).toBe(6)
      expect(results.toSorted()).toEqual(['dead', ...Array.from({ length: 5 }, () => 'processed')])
      expect(attempts).toEqual([1, 2, 3])
      expect(await effectsOf(poison)).toBe(0)
      const dead = []
      for await (const message of inbox.listDead()) dead.push(message)
      expect(dead).toMatchObject([{ source: queue.source, key: poison, attempts: 3 }])

      isMended = true
      expect(await inbox.redrive({ source: queue.source, key: poison })).toBe(true)
      await queue.publish(poison, poison)
      await expect.poll(() => results.length, eventually).toBe(7)
      await consumption.stop()
      expect(results.at(-1)).toBe('processed')
      expect(await Promise.all(bodies.map(effectsOf))).toEqual(bodies.map(() => 1))
      expect(events.filter(({ type }) => type === 'message-failed')).toHaveLength(2)
      await expect.poll(() => queue.cutOff(), eventually).toBe(0)
    },
  },
  {
    name: 'never acknowledges a message that somebody else is at',
    async run(newQueue) {
      const queue = await newQueue('skip')
      const { inbox, results } = aQueueInbox()
      const body = ofThisTest()
      const inside = gate()
      const finish = gate()
      const other = inbox.processOnce({ source: queue.source, key: body }, async (context) => {
        await apply(body, context)
        inside.open()
        await finish.opened
      })
      await inside.opened
      await queue.publish(body, body)
      const first = await queue.consume(inbox, () => expect.fail())
      await expect.poll(() => results.length, eventually).toBeGreaterThanOrEqual(3)
      expect(new Set(results)).toEqual(new Set(['in-progress']))
      await expect.poll(() => queue.cutOff(), eventually).toBe(1)
      // What it had in hand is not for the gate to let through.
      await first.ended

      finish.open()
      expect(await other).toBe('processed')
      const second = await queue.consume(inbox, () => expect.fail())
      await expect.poll(() => results.at(-1), eventually).toBe('duplicate')
      await second.stop()
      expect(await effectsOf(body)).toBe(1)
      await expect.poll(() => queue.cutOff(), eventually).toBe(0)
    },
  },
  {
    name: 'stops when what is in hand is done, and takes nothing more',
    async run(newQueue) {
      const queue = await newQueue('block')
      const { inbox, results } = aQueueInbox({ order: 'block' })
      const [first, second] = [ofThisTest(), ofThisTest()]
      const inside = gate()
      const finish = gate()
      await queue.publish(first)
      await queue.publish(second)
      const consumption = await queue.consume(inbox, async (body, context) => {
        expect(body).toBe(first)
        await apply(body, context)
        inside.open()
        await finish.opened
      })
      await inside.opened
      let hasStopped = false
      const stopping = consumption.stop().then(() => {
        hasStopped = true
      })
      // More than the round trip that ends the consumer.
      await queue.publish(ofThisTest())
      await effectsOf(first)
      expect(hasStopped).toBe(false)
      finish.open()
      await stopping
      expect(await consumption.ended).toEqual({ reason: 'stopped' })
      expect(results).toEqual(['processed'])
      expect([await effectsOf(first), await effectsOf(second)]).toEqual([1, 0])
      await expect.poll(() => queue.cutOff(), eventually).toBe(2)
    },
  },
  {
    name: 'takes back what is not done within the limit, when it stops',
    async run(newQueue) {
      const queue = await newQueue('skip')
      const { inbox, results } = aQueueInbox({ attempts: { max: 1 } })
      const body = ofThisTest()
      const inside = gate()
      await queue.publish(body)
      let wasAborted = false
      const first = await queue.consume(
        inbox,
        async (given, context) => {
          await apply(given, context)
          const aborted = new Promise((resolve) => context.signal.addEventListener('abort', resolve))
          inside.open()
          await aborted
          wasAborted = true
        },
        { drainTimeout: 50 },
      )
      await inside.opened
      await first.stop()
      expect(wasAborted).toBe(true)
      expect(await effectsOf(body)).toBe(0)
      await expect.poll(() => queue.cutOff(), eventually).toBe(1)
      // It was no attempt.
      const second = await queue.consume(inbox, apply)
      await expect.poll(() => results, eventually).toEqual(['processed'])
      await second.stop()
      expect(await effectsOf(body)).toBe(1)
    },
  },
  {
    name: 'holds back what is behind a failing and a dead message, where the order is kept',
    async run(newQueue) {
      const queue = await newQueue('block')
      const { inbox, results } = aQueueInbox({ order: 'block', attempts: { max: 2, delay: 20 } })
      const bodies = Array.from({ length: 4 }, ofThisTest)
      const poison = bodies[1] as string
      const seen: string[] = []
      let isMended = false
      for (const body of bodies) await queue.publish(body, body)
      const consumption = await queue.consume(inbox, async (body, context) => {
        if (seen.at(-1) !== body) seen.push(body)
        await apply(body, context)
        if (body === poison && !isMended) throw new Error('no such account')
      })
      const deaths = (): number => results.filter((result) => result === 'dead').length
      await expect.poll(deaths, eventually).toBeGreaterThanOrEqual(3)
      expect(seen).toEqual(bodies.slice(0, 2))
      isMended = true
      expect(await inbox.redrive({ source: queue.source, key: poison })).toBe(true)
      await expect.poll(() => results.at(-1), eventually).toBe('processed')
      await expect.poll(() => seen.length, eventually).toBe(4)
      await consumption.stop()
      expect(seen).toEqual(bodies)
      expect(await Promise.all(bodies.map(effectsOf))).toEqual([1, 1, 1, 1])
      await expect.poll(() => queue.cutOff(), eventually).toBe(0)
    },
  },
]

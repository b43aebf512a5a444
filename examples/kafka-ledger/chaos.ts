import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'
import type { ConsumerOptions } from './consumer.js'
import { produceEvents } from './events.js'
import { countLedger, type LedgerCount, openLedger } from './ledger.js'

/** What happens to a ledger. */
export interface ChaosOptions {
  readonly brokers: readonly string[]
  readonly databaseUrl: string
  readonly events: number
  /** How many of the events their producer sends twice. */
  readonly duplicates: number
  readonly by: ConsumerOptions['by']
  readonly inBatches: boolean
  readonly consumers: number
  readonly partitions: number
  /** About how often one of the consumers is killed, in milliseconds. The group needs some of that to find it out. */
  readonly killEveryMs: number
  readonly tell: (line: string) => void
}

/** How it ended. */
export interface ChaosReport extends LedgerCount {
  readonly events: number
  readonly messages: number
  readonly kills: number
  /** How long it took until every offset was committed. */
  readonly seconds: number
}

const PROGRAM = new URL('./consumer.js', import.meta.url).pathname
const PATIENCE_MS = 600_000

/** Produces events, lets some consumers apply them, and kills one after another until all offsets are committed. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const { brokers, databaseUrl, events, consumers, partitions, tell } = options
  const run = randomUUID().slice(0, 8)
  const [topic, group] = [`payments-${run}`, `ledger-${run}`]
  const kafka = new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING })
  const pool = new Pool({ connectionString: databaseUrl })
  await postgresStore(pool).migrate()
  await openLedger(pool)
  const admin = kafka.admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions }], waitForLeaders: true })
  const messages = await produceEvents(kafka, topic, options)
  tell(`${events} events are in ${messages} messages of ${partitions} partitions.`)

  const program: ConsumerOptions = { ...options, brokers, topic, group }
  const startedAt = performance.now()
  const running = Array.from({ length: consumers }, () => startConsumer(program))
  let kills = 0
  try {
    for (let isDone = false; !isDone; ) {
      await pause(options.killEveryMs * (0.5 + Math.random()))
      const left = await messagesLeft(admin, topic, group)
      // A broker that is still loading what it knows of the group says so.
      if (left === undefined) continue
      tell(`${left} messages left, ${kills} kills so far`)
      isDone = left === 0
      if (isDone) break
      if (performance.now() - startedAt > PATIENCE_MS)
        throw new Error(`${left} messages were left after ten minutes`)
      const victim = Math.floor(Math.random() * consumers)
      running[victim]?.kill('SIGKILL')
      running[victim] = startConsumer(program)
      kills += 1
    }
    const seconds = (performance.now() - startedAt) / 1000
    return { events, messages, kills, seconds, ...(await countLedger(pool)) }
  } finally {
    for (const child of running) child.kill('SIGKILL')
    await admin.deleteTopics({ topics: [topic] }).catch(() => {})
    await admin.disconnect()
    await pool.end()
  }
}

function startConsumer(options: ConsumerOptions): ChildProcess {
  const { brokers, databaseUrl, topic, group, by, inBatches } = options
  const told = JSON.stringify({ brokers, databaseUrl, topic, group, by, inBatches } satisfies ConsumerOptions)
  return spawn(process.execPath, [PROGRAM, told], { stdio: ['ignore', 'inherit', 'inherit'] })
}

/** How many messages have no committed offset behind them; `undefined` where the broker cannot tell now. */
async function messagesLeft(
  admin: ReturnType<Kafka['admin']>,
  topic: string,
  group: string,
): Promise<number | undefined> {
  const ends = await admin.fetchTopicOffsets(topic)
  const offsets = await admin.fetchOffsets({ groupId: group, topics: [topic] }).catch((error: unknown) => {
    if ((error as { readonly retriable?: boolean }).retriable === true) return undefined
    throw error
  })
  if (offsets === undefined) return undefined
  const [committed] = offsets
  return ends.reduce((left, { partition, high }) => {
    const offset = committed?.partitions.find((one) => one.partition === partition)?.offset ?? '-1'
    return left + Number(high) - Math.max(0, Number(offset))
  }, 0)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}

import { randomInt, randomUUID } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect as connectToNats, headers, nanos } from '@nats-io/transport-node'
import { connect as connectToRabbitMq } from 'amqplib'
import { Pool } from 'pg'
import { afterAll, beforeAll, expect, inject, it } from 'vitest'
import { postgresStore } from '../../src/stores/postgres.js'
import type { QueueConsumerOptions } from '../programs/queue-consumer.js'
import { type ServerProcess, startServerProcess } from '../support/server-process.js'
import { brokerUrl, describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const ROUNDS = 6
const EXACT_KILLS = 2
/** How many messages come before each death. */
const EACH = 50
const eventually = { timeout: 120_000, interval: 20 }

interface TestQueue {
  readonly name: string
  publish(bodies: readonly string[]): Promise<void>
  /** How many messages are neither processed nor acknowledged. */
  left(): Promise<number>
  remove(): Promise<void>
}

const BROKERS: Readonly<Record<QueueConsumerOptions['broker'], () => Promise<TestQueue>>> = {
  async rabbitmq() {
    const name = `kills-${randomUUID()}`
    const connection = await connectToRabbitMq(brokerUrl('rabbitmq'))
    const channel = await connection.createConfirmChannel()
    await channel.assertQueue(name, { durable: true })
    return {
      name,
      async publish(bodies) {
        for (const body of bodies)
          channel.sendToQueue(name, Buffer.from(body), { messageId: body, persistent: true })
        await channel.waitForConfirms()
      },
      left: async () => (await channel.checkQueue(name)).messageCount,
      async remove() {
        await channel.deleteQueue(name)
        await connection.close()
      },
    }
  },
  async nats() {
    const name = `kills-${randomUUID()}`
    const connection = await connectToNats({ servers: brokerUrl('nats') })
    const manager = await jetstreamManager(connection)
    await manager.streams.add({ name, subjects: [`${name}.*`] })
    const consumer = { durable_name: name, ack_policy: 'explicit', ack_wait: nanos(2000) } as const
    await manager.consumers.add(name, consumer)
    return {
      name,
      async publish(bodies) {
        for (const body of bodies) {
          const named = headers()
          named.set('Nats-Msg-Id', body)
          await jetstream(connection).publish(`${name}.paid`, body, { headers: named })
        }
      },
      async left() {
        const { num_ack_pending: out, delivered } = await manager.consumers.info(name, name)
        const { state } = await manager.streams.info(name)
        return out + state.last_seq - delivered.stream_seq
      },
      async remove() {
        await manager.streams.delete(name)
        await connection.close()
      },
    }
  },
}

for (const broker of ['rabbitmq', 'nats'] as const)
  describeWith([broker, 'postgres'], `consumers of ${broker} that are killed`, () => {
    const bodies: string[] = []
    let pool: Pool
    let queue: TestQueue
    let folder: string
    let lives = 0
    const running: ServerProcess[] = []

    beforeAll(async () => {
      pool = new Pool({ connectionString: postgresUrl })
      await postgresStore(pool).migrate()
      await pool.query('create table if not exists queue_kill_effects (queue text, body text)')
      folder = mkdtempSync(join(tmpdir(), 'oncekey-kills-'))
      queue = await BROKERS[broker]()
    })
    afterAll(async () => {
      await Promise.all(running.map((consumer) => consumer.kill()))
      await queue.remove()
      await pool.end()
      rmSync(folder, { recursive: true, force: true })
    })

    async function start(more: Pick<QueueConsumerOptions, 'diesAfter'> = {}) {
      lives += 1
      const file = join(folder, `told-${lives}`)
      writeFileSync(file, '')
      const options: QueueConsumerOptions = {
        broker,
        brokerUrl: brokerUrl(broker),
        postgresUrl,
        queue: queue.name,
        consumer: `consumer of ${queue.name}`,
        told: file,
        ...more,
      }
      const consumer = await startServerProcess('queue-consumer', options)
      running.push(consumer)
      return { consumer, told: () => linesOf(file) }
    }

    /** What all of the processes have told so far. */
    function allTold(): readonly string[] {
      return Array.from({ length: lives }, (_, life) => linesOf(join(folder, `told-${life + 1}`))).flat()
    }

    async function publishMore(): Promise<void> {
      const more = Array.from({ length: EACH }, () => randomUUID())
      bodies.push(...more)
      await queue.publish(more)
    }

    async function applied(): Promise<number> {
      const { rows } = await pool.query(
        'select count(distinct body)::int as n from queue_kill_effects where queue = $1',
        [queue.name],
      )
      return rows[0].n
    }

    it('have each effect once, however often they die', async () => {
      let kills = 0
      for (let round = 0; round < ROUNDS; round += 1) {
        const pair = await Promise.all([start(), start()])
        await publishMore()
        await Promise.all(
          pair.map(async ({ consumer, told }) => {
            const most = randomInt(3, 16)
            // A quick one may have left nothing for the other.
            const isTime = async () => told().length >= most || (await applied()) === bodies.length
            await expect.poll(isTime, eventually).toBe(true)
            await consumer.kill()
            kills += 1
          }),
        )
      }
      const unacknowledged: string[] = []
      for (let kill = 0; kill < EXACT_KILLS; kill += 1) {
        await publishMore()
        const { consumer, told } = await start({ diesAfter: 5 })
        await consumer.ended
        const last = told().at(-1)
        expect(last).toMatch(/^processed /)
        unacknowledged.push(String(last?.split(' ')[1]))
      }
      const { consumer } = await start()
      await expect.poll(applied, eventually).toBe(bodies.length)
      for (const body of unacknowledged) await expect.poll(allTold, eventually).toContain(`duplicate ${body}`)
      await consumer.end()
      await expect.poll(() => queue.left(), eventually).toBe(0)

      const { rows } = await pool.query(
        'select body, count(*)::int as n from queue_kill_effects where queue = $1 group by body',
        [queue.name],
      )
      expect(rows.map(({ body }) => body).toSorted()).toEqual(bodies.toSorted())
      expect(rows.filter(({ n }) => n !== 1)).toEqual([])
      const duplicates = allTold().filter((line) => line.startsWith('duplicate')).length
      console.log(
        `${broker}: ${bodies.length} messages, ${kills} kills at random and ${EXACT_KILLS} between commit and acknowledgement: ${rows.length} effects, ${duplicates} duplicates kept out`,
      )
    }, 300_000)
  })

function linesOf(file: string): readonly string[] {
  return readFileSync(file, 'utf8').split('\n').filter(Boolean)
}

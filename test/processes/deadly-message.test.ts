import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { afterAll, beforeAll, expect, inject, it } from 'vitest'
import { createInbox } from '../../src/messages/inbox.js'
import { postgresStore } from '../../src/stores/postgres.js'
import type { MortalConsumerOptions } from '../programs/mortal-consumer.js'
import { anOrder, type KafkaTopics, openTopics } from '../support/kafka-topics.js'
import { startServerProcess } from '../support/server-process.js'
import { brokerUrl, describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const ATTEMPTS = 3

describeWith(['kafka', 'postgres'], 'A message that kills its process', () => {
  let topics: KafkaTopics
  let pool: Pool
  beforeAll(async () => {
    topics = await openTopics()
    pool = new Pool({ connectionString: postgresUrl })
    await postgresStore(pool).migrate()
    await pool.query('create table if not exists mortal_effects (consumer text, body text)')
  }, 120_000)
  afterAll(async () => {
    await topics.close()
    await pool.end()
  })

  it.each([false, true])(
    'is dead once it has killed as many as it has attempts, and the others are processed (in batches: %s)',
    async (inBatches) => {
      const bodies = ['1', '2', 'deadly', '3', '4']
      const topic = await topics.topic(bodies.map((body) => anOrder(body)))
      const group = randomUUID()
      const options: MortalConsumerOptions = {
        brokers: brokerUrl('kafka').split(','),
        postgresUrl,
        topic,
        group,
        inBatches,
        attempts: ATTEMPTS,
      }
      let deaths = 0
      for (;;) {
        const consumer = await startServerProcess('mortal-consumer', options)
        const died = consumer.ended.then(() => 'died')
        const done = expect
          .poll(() => topics.committed(topic, group), { timeout: 60_000, interval: 100 })
          .toEqual([bodies.length])
          .then(() => 'done')
        // One that dies leaves the other waiting: whatever becomes of that is of no interest then.
        done.catch(() => {})
        if ((await Promise.race([died, done])) === 'done') {
          await consumer.kill()
          break
        }
        deaths += 1
        expect(deaths).toBeLessThanOrEqual(2 * ATTEMPTS)
      }
      // The first process may have met it in a batch, or before it could suspect anything: nothing was noted then.
      expect(deaths).toBeGreaterThanOrEqual(ATTEMPTS)
      expect(deaths).toBeLessThanOrEqual(ATTEMPTS + 1)
      const { rows } = await pool.query('select body from mortal_effects where consumer = $1 order by 1', [
        group,
      ])
      expect(rows.map(({ body }) => body)).toEqual(['1', '2', '3', '4'])
      const inbox = createInbox({ store: postgresStore(pool), consumer: group, sweep: false })
      const dead: string[] = []
      for await (const { key } of inbox.listDead()) dead.push(key)
      expect(dead).toEqual(['deadly'])
    },
    180_000,
  )
})

import type { Consumer } from 'kafkajs'
import { memoryStore } from 'oncekey'
import { eachBatch, eachMessage } from 'oncekey/kafkajs'
import { createInbox, highWatermark } from 'oncekey/messages'
import { postgresStore } from 'oncekey/postgres'
import { Pool, type PoolClient } from 'pg'
import { expectTypeOf } from 'vitest'

const store = postgresStore(new Pool())
const transactional = createInbox<PoolClient>({ store, consumer: 'ledger', strategy: highWatermark() })
await transactional.processOnce({ key: 'a' }, ({ tx, attempt, redelivered, signal, deriveKey }) => {
  expectTypeOf(tx).toEqualTypeOf<PoolClient>()
  expectTypeOf(attempt).toBeNumber()
  expectTypeOf(redelivered).toBeBoolean()
  expectTypeOf(signal).toEqualTypeOf<AbortSignal>()
  expectTypeOf(deriveKey).toEqualTypeOf<(label: string) => string>()
})
await transactional.processBatch([{ key: 'a', payload: 1 }], (messages, { tx }) => {
  expectTypeOf(tx).toEqualTypeOf<PoolClient>()
  expectTypeOf(messages[0]?.message.payload).toEqualTypeOf<number | undefined>()
})
expectTypeOf(await transactional.enlist(new Pool(), { key: 'a' })).toEqualTypeOf<
  'fresh' | 'duplicate' | 'dead'
>()

const leased = createInbox({ store: memoryStore(), consumer: 'mail', onUnknown: 'rerun' })
// @ts-expect-error a lease has no transaction
await leased.processOnce({ key: 'a' }, ({ tx }) => tx)
// @ts-expect-error nor can it be a part of one
leased.enlist
// @ts-expect-error who consumes is a part of every key
createInbox({ store })
// @ts-expect-error there is nowhere to keep it by default
createInbox({ consumer: 'mail' })

declare const consumer: Consumer
await consumer.run(
  eachMessage(
    transactional,
    ({ topic, message }, { tx }) => {
      expectTypeOf(topic).toBeString()
      expectTypeOf(message.value).toEqualTypeOf<Buffer | null>()
      expectTypeOf(tx).toEqualTypeOf<PoolClient>()
    },
    { consumer },
  ),
)
await consumer.run({ partitionsConsumedConcurrently: 3, ...eachBatch(leased, () => {}, { batchSize: 10 }) })

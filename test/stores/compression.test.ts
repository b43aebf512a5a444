import { randomBytes, randomUUID } from 'node:crypto'
import { deflateSync } from 'node:zlib'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { memoryStore } from '../../src/stores/memory.js'
import { redisStore } from '../../src/stores/redis.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anOutcome, assertOutcome, HOUR, lapsed } from '../../src/testing/store-fixtures.js'
import { checked } from '../support/checked-store.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'

const UNREADABLE = { code: 'IDEMPOTENCY_OUTCOME_UNREADABLE' }

/** An answer in JSON of about so many bytes, as long lists of payments are. */
function aList(bytes: number): Buffer {
  const lines: string[] = []
  for (let length = 0; length < bytes; length += lines.at(-1)?.length ?? 0)
    lines.push(
      JSON.stringify({ id: randomUUID(), status: 'accepted', currency: 'EUR', amount: lines.length }),
    )
  return Buffer.from(`[${lines.join(',')}]`)
}

/** Bodies below and above what is compressed at once, text and not, that get shorter and that do not. */
const BODIES: readonly (readonly [what: string, body: Buffer])[] = [
  ['a short text', Buffer.from('{}')],
  ['a list of 2 KiB', aList(2048)],
  ['a list of 100 KiB', aList(100 * 1024)],
  ['a list of 1 MiB', aList(1024 * 1024)],
  ['bytes that are no text', Buffer.alloc(5000, 0xff)],
  ['many bytes that are no text', Buffer.alloc(50_000, 0xff)],
  ['what is compressed already', deflateSync(aList(4096))],
  ['random bytes', randomBytes(40_000)],
]

async function completed(store: IdempotencyStore, body: Buffer): Promise<string> {
  const claim = aClaim()
  await store.claim(claim)
  expect(await store.complete(claim.id, claim.token, anOutcome({ body }), HOUR)).toBe(true)
  return claim.id
}

/** Reads a record as a retry does, as an operator does, and from a list. */
async function expectOutcome(store: IdempotencyStore, id: string, body: Buffer): Promise<void> {
  for (const found of [await store.claim(aClaim({ id })), await store.find(id)]) {
    if (found?.status !== 'completed') throw new Error('The record has not completed')
    assertOutcome(found.outcome, anOutcome({ body }))
  }
}

const { redisUrl } = inject('services')
let client: Redis
beforeAll(() => {
  client = new Redis(redisUrl, { lazyConnect: true })
})
afterAll(() => {
  client.disconnect()
})

describeWith(['redis'], 'redisStore that compresses', () => {
  const compress = { aboveBytes: 0 }

  it.each(storeContract)('$name', async ({ run }) => {
    await run(await checked(redisStore(client, { compress })))
  })

  it('follows the model through any interleaving of clients', async () => {
    const store = await checked(redisStore(client, { compress, prefix: `${randomUUID()}:` }))
    await checkStoreModel(() => store, { numRuns: 10 })
  })

  it.each(BODIES)('gives back %s, to processes without the option too', async (_, body) => {
    const id = await completed(redisStore(client, { compress: { aboveBytes: 1024 } }), body)
    await expectOutcome(redisStore(client), id, body)
    await expectOutcome(redisStore(client, { compress }), id, body)
  })

  it('gives each claim of a shared command its own body, some of them later than others', async () => {
    const sent: unknown[] = []
    const prefix = `${randomUUID()}:`
    const store = await checked(
      redisStore(
        {
          info: client.info.bind(client),
          config: client.config.bind(client),
          callBuffer(command: string, args: (string | Buffer | number)[]) {
            if (command === 'evalsha') sent.push(args[1])
            return client.callBuffer(command, args)
          },
        },
        { compress, prefix },
      ),
    )
    // The long ones are read by other threads, the short ones at once.
    const bodies = [aList(30_000), aList(1000), Buffer.alloc(500_000, '{'), Buffer.from('{}'), aList(20_000)]
    const ids = await Promise.all(bodies.map((body) => completed(store, body)))
    const cut = await completed(store, aList(30_000))
    const record = (await client.getBuffer(prefix + cut)) ?? expect.fail()
    await client.set(prefix + cut, record.subarray(0, -1))
    sent.length = 0
    const [unreadable, fresh, ...found] = await Promise.allSettled(
      [cut, aClaim().id, ...ids].map((id) => store.claim(aClaim({ id }))),
    )
    expect(sent).toEqual([bodies.length + 2])
    expect(unreadable).toMatchObject({ status: 'rejected', reason: UNREADABLE })
    expect(fresh).toMatchObject({ value: { status: 'acquired', fence: 1 } })
    for (const [index, claim] of found.entries()) {
      if (claim.status !== 'fulfilled' || claim.value.status !== 'completed')
        throw new Error(`Claim ${index} was not answered`)
      assertOutcome(claim.value.outcome, anOutcome({ body: bodies[index] ?? null }))
    }
    expect(found).toHaveLength(bodies.length)
  })

  it('gives back what was settled', async () => {
    const store = redisStore(client, { compress })
    const body = aList(2048)
    const { id } = await lapsed(store)
    expect(await store.settle(id, anOutcome({ body }), HOUR)).toBe(true)
    await expectOutcome(redisStore(client), id, body)
  })

  it('makes records shorter above the size, and leaves the others as they are', async () => {
    const prefix = `${randomUUID()}:`
    const lengthOf = async (body: Buffer, aboveBytes?: number): Promise<number> => {
      const store = redisStore(client, {
        prefix,
        ...(aboveBytes !== undefined && { compress: { aboveBytes } }),
      })
      return client.strlen(prefix + (await completed(store, body)))
    }
    const [list, random] = [aList(2048), randomBytes(2048)]
    const plain = await lengthOf(list)
    expect(await lengthOf(list, list.length)).toBe(plain)
    expect(await lengthOf(list, list.length - 1)).toBeLessThan(plain - 1000)
    expect(await lengthOf(random, 0)).toBe(await lengthOf(random))
  })

  it('says of a record that was changed or cut that it cannot be read, and leaves it out of a list', async () => {
    const prefix = `${randomUUID()}:`
    const store = redisStore(client, { compress, prefix })
    const body = aList(2048)
    const [whole, broken] = [await completed(store, body), await completed(store, body)]
    const record = (await client.getBuffer(prefix + broken)) ?? expect.fail()
    const spoiled = [
      // A byte that was changed, an end that was cut off, and another length, in both directions.
      record.with(record.length - 20, (record.at(-20) ?? 0) ^ 1),
      record.subarray(0, -1),
      Buffer.from(record.toString('latin1').replace(` ${body.length}\n`, ` ${body.length + 1}\n`), 'latin1'),
      Buffer.from(record.toString('latin1').replace(` ${body.length}\n`, ` ${body.length - 1}\n`), 'latin1'),
      Buffer.from(record.toString('latin1').replace(` ${body.length}\n`, ' 99999999999\n'), 'latin1'),
    ]
    for (const bytes of spoiled) {
      expect(record.equals(bytes)).toBe(false)
      await client.set(prefix + broken, Buffer.from(bytes), 'PX', HOUR)
      await expect(store.claim(aClaim({ id: broken }))).rejects.toMatchObject(UNREADABLE)
      await expect(store.find(broken)).rejects.toMatchObject(UNREADABLE)
    }
    const listed: string[] = []
    for await (const { id } of store.list?.({}) ?? []) listed.push(id)
    expect(listed).toEqual([whole])
  })

  it('makes no more bytes than the record says, whatever it holds', async () => {
    const prefix = `${randomUUID()}:`
    const store = redisStore(client, { compress, prefix })
    const id = await completed(store, aList(2048))
    const record = ((await client.getBuffer(prefix + id)) ?? expect.fail()).toString('latin1')
    const bomb = deflateSync(Buffer.alloc(200 * 1024 * 1024))
    const [start = ''] = /^.*\n.*\n\{"status":201\}/.exec(record) ?? expect.fail()
    await client.set(prefix + id, Buffer.concat([Buffer.from(start, 'latin1'), bomb]), 'PX', HOUR)
    const before = process.memoryUsage().arrayBuffers
    await expect(store.claim(aClaim({ id }))).rejects.toMatchObject(UNREADABLE)
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(50 * 1024 * 1024)
  })

  it('refuses an option that it cannot use', () => {
    for (const wrong of [null, {}, { aboveBytes: -1 }, { aboveBytes: '1KiB' }, { aboveBytes: 0.5 }])
      expect(() => redisStore(client, { compress: wrong as never })).toThrow(/"compress.aboveBytes"/)
  })
})

describe('sealedStore that compresses', () => {
  const keys = [randomBytes(32)] as const

  it.each(storeContract)('$name', async ({ run }) => {
    await run(sealedStore(memoryStore(), { keys, compress: { aboveBytes: 0 } }))
  })

  it.each(BODIES)('gives back %s, to processes without the option too', async (_, body) => {
    const inner = memoryStore()
    const id = await completed(sealedStore(inner, { keys, compress: { aboveBytes: 1024 } }), body)
    await expectOutcome(sealedStore(inner, { keys }), id, body)
  })

  it('compresses before it seals', async () => {
    const inner = memoryStore()
    const body = aList(2048)
    const id = await completed(sealedStore(inner, { keys, compress: { aboveBytes: 1024 } }), body)
    const found = await inner.find(id)
    if (found?.status !== 'completed') throw new Error('The record has not completed')
    expect(found.outcome.body?.byteLength).toBeLessThan(body.length / 2)
  })
})

import { randomBytes, randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import type { InboxTable } from '../../src/contract/inbox.js'
import type { IdempotencyStore, Outcome, TransactionSettings } from '../../src/contract/store.js'
import { createIdempotency } from '../../src/index.js'
import { memoryStore } from '../../src/stores/memory.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { type SealingKey, sealedStore } from '../../src/stores/sealed.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anId, anOutcome, assertOutcome, HOUR, lapsed } from '../../src/testing/store-fixtures.js'
import { aKey, anApp } from '../support/fastify-app.js'
import { asInstance } from '../support/instance-store.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'

const UNREADABLE = { code: 'IDEMPOTENCY_OUTCOME_UNREADABLE', statusCode: 500, retryable: false }

const PATIENTLY = { timeout: 15_000, interval: 20 }

const SECRET = anOutcome({ head: '{"iban":"DE02 1203"}', body: Buffer.from('{"balance":"1,000.00"}') })

function aSealingKey(): Uint8Array {
  return randomBytes(32)
}

/** The outcome that a store keeps. */
async function keptIn(store: IdempotencyStore, id: string): Promise<Outcome> {
  const found = await store.find(id)
  if (found?.status !== 'completed') throw new Error('The record has not completed')
  return found.outcome
}

/** Puts an outcome into a store, past everything around it, as somebody would who can write to its database. */
async function plant(store: IdempotencyStore, id: string, outcome: Outcome): Promise<void> {
  const claim = aClaim({ id })
  await store.claim(claim)
  await store.complete(id, claim.token, outcome, HOUR)
}

/** What the record of an id is sealed to. */
async function sealedForm(
  key: SealingKey,
  outcome: Outcome,
): Promise<{ readonly id: string; readonly sealed: Outcome }> {
  const inner = memoryStore()
  const id = anId()
  await plant(sealedStore(inner, { keys: [key] }), id, outcome)
  return { id, sealed: await keptIn(inner, id) }
}

/** Reads an outcome that somebody has put into the store, as a retry and as an operator do. */
async function readings(keys: readonly SealingKey[], id: string, planted: Outcome) {
  const inner = memoryStore()
  await plant(inner, id, planted)
  const store = sealedStore(inner, { keys })
  return [store.claim(aClaim({ id, takeOver: true })), store.find(id)] as const
}

async function expectUnreadable(keys: readonly SealingKey[], id: string, planted: Outcome): Promise<void> {
  for (const reading of await readings(keys, id, planted))
    await expect(reading).rejects.toMatchObject(UNREADABLE)
}

async function expectReadable(
  keys: readonly SealingKey[],
  id: string,
  planted: Outcome,
  as: Outcome,
): Promise<void> {
  for (const reading of await readings(keys, id, planted)) {
    const found = await reading
    if (found?.status !== 'completed') throw new Error('The record has not completed')
    assertOutcome(found.outcome, as)
  }
}

describe('sealedStore of a memory store', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    await run(sealedStore(asInstance(memoryStore()), { keys: [aSealingKey()] }))
  })

  it('follows the model through any interleaving of clients', async () => {
    const keys = [aSealingKey()]
    await checkStoreModel(() => sealedStore(memoryStore(), { keys }), { numRuns: 100 })
  })
})

const { redisUrl, postgresUrl } = inject('services')

describeWith(['redis'], 'sealedStore of a Redis store', () => {
  let client: Redis
  beforeAll(() => {
    client = new Redis(redisUrl)
  })
  afterAll(() => client.disconnect())

  it.each(storeContract)('$name', async ({ run }) => {
    await run(sealedStore(redisStore(client), { keys: [aSealingKey()] }))
  })
})

describeWith(['postgres'], 'sealedStore of a Postgres store', () => {
  let pool: Pool
  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  })
  afterAll(() => pool.end())

  it.each(storeContract)('$name', async ({ run }) => {
    await run(sealedStore(postgresStore(pool), { keys: [aSealingKey()] }))
  })
})

describe('sealedStore › what the store behind it sees', () => {
  it.each([
    ['a completion', (store: IdempotencyStore, id: string) => plant(store, id, SECRET)],
    [
      'a settlement',
      async (store: IdempotencyStore, id: string) => {
        const claim = aClaim({ id })
        await store.claim(claim)
        await store.renew(id, claim.token, 1)
        await expect.poll(() => store.settle(id, SECRET, HOUR), PATIENTLY).toBe(true)
      },
    ],
  ])('is neither head nor body of %s, but its result', async (_, keep) => {
    const inner = memoryStore()
    const id = anId()
    await keep(sealedStore(inner, { keys: [aSealingKey()] }), id)
    const { result, head, body } = await keptIn(inner, id)
    expect(result).toBe(SECRET.result)
    const seen = head + Buffer.from(body ?? []).toString('latin1')
    for (const word of ['iban', '1203', 'balance', '1,000']) expect(seen).not.toContain(word)
  })

  it('is a tombstone where a tombstone was kept, which still fits when the store is full', async () => {
    const inner = memoryStore({ maxBytes: 2000 })
    const store = sealedStore(inner, { keys: [aSealingKey()] })
    const claim = aClaim()
    await store.claim(claim)
    const outcome = anOutcome({ body: new Uint8Array(4000) })
    await expect(store.complete(claim.id, claim.token, outcome, HOUR)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_STORE_FULL',
    })
    const tombstone = { ...outcome, body: null }
    expect(await store.complete(claim.id, claim.token, tombstone, HOUR)).toBe(true)
    const kept = await keptIn(inner, claim.id)
    expect(kept.body).toBeNull()
    expect(kept.head).not.toContain('201')
    assertOutcome(await keptIn(store, claim.id), tombstone)
  })

  it('differs each time that the same outcome is sealed', async () => {
    const key = aSealingKey()
    const forms = await Promise.all([sealedForm(key, SECRET), sealedForm(key, SECRET)])
    const [one, two] = forms.map(({ sealed }) => Buffer.from(sealed.body ?? []).toString('hex'))
    expect(one).not.toBe(two)
    const id = anId()
    const inner = [memoryStore(), memoryStore()]
    for (const each of inner) await plant(sealedStore(each, { keys: [key] }), id, SECRET)
    const [first, second] = await Promise.all(inner.map((each) => keptIn(each, id)))
    expect(first?.head).not.toBe(second?.head)
    expect(first?.body).not.toEqual(second?.body)
  })

  it('holds no byte of a key', async () => {
    const key = aSealingKey()
    const { sealed } = await sealedForm(key, SECRET)
    const hex = Buffer.from(sealed.head.split(' ')[2] ?? '', 'base64url').toString('hex')
    expect(hex).toHaveLength(16)
    expect(Buffer.from(key).toString('hex')).not.toContain(hex)
  })
})

describe('sealedStore › what somebody changed', () => {
  const key = aSealingKey()
  let id: string
  let sealed: Outcome & { readonly body: Uint8Array }
  let tombstone: { readonly id: string; readonly sealed: Outcome }
  beforeAll(async () => {
    const form = await sealedForm(key, SECRET)
    id = form.id
    sealed = { ...form.sealed, body: form.sealed.body ?? new Uint8Array() }
    tombstone = await sealedForm(key, { ...SECRET, body: null })
  })

  it('is not there: what it sealed opens, for as long as nobody changed it', async () => {
    await expectReadable([key], id, sealed, SECRET)
    await expectReadable([key], tombstone.id, tombstone.sealed, { ...SECRET, body: null })
  })

  it('is refused, whichever byte of the sealed body it is', async () => {
    for (const index of sealed.body.keys()) {
      const body = Uint8Array.from(sealed.body)
      body[index] = (body[index] ?? 0) ^ 1
      await expectUnreadable([key], id, { ...sealed, body })
    }
  })

  it('is refused, whichever character of the sealed head it is', async () => {
    for (const form of [{ id, sealed }, tombstone]) {
      const { head } = form.sealed
      for (const index of head.slice(0, -1).split('').keys()) {
        const other = head[index] === 'A' ? 'B' : 'A'
        const changed = head.slice(0, index) + other + head.slice(index + 1)
        await expectUnreadable([key], form.id, { ...form.sealed, head: changed })
      }
    }
  })

  it('is refused when something was cut off or added', async () => {
    for (const end of [0, 1, 15, 16, 19, 20, sealed.body.byteLength - 1])
      await expectUnreadable([key], id, { ...sealed, body: sealed.body.slice(0, end) })
    await expectUnreadable([key], id, { ...sealed, body: Buffer.concat([sealed.body, Buffer.alloc(1)]) })
    for (const head of [sealed.head.slice(0, -1), `${sealed.head} `, `${sealed.head}\n`, `${sealed.head}A`])
      await expectUnreadable([key], id, { ...sealed, head })
    await expectUnreadable([key], tombstone.id, { ...tombstone.sealed, head: `${tombstone.sealed.head}AAAA` })
  })

  it('is refused when the result was', async () => {
    await expectUnreadable([key], id, { ...sealed, result: 'failed' })
    await expectUnreadable([key], tombstone.id, { ...tombstone.sealed, result: 'failed' })
  })

  it('is refused when a body became a tombstone, or a tombstone got a body', async () => {
    await expectUnreadable([key], id, { ...sealed, body: null })
    const inHead = `${sealed.head} ${Buffer.from(sealed.body).toString('base64url')}`
    await expectUnreadable([key], id, { ...sealed, head: inHead, body: null })
    await expectUnreadable([key], id, { ...sealed, head: inHead })
    await expectUnreadable([key], tombstone.id, { ...tombstone.sealed, body: new Uint8Array(0) })
    const [, bytes = ''] = / ([\w-]+)$/.exec(tombstone.sealed.head) ?? []
    const head = tombstone.sealed.head.slice(0, -bytes.length - 1)
    const body = Buffer.from(bytes, 'base64url')
    await expectUnreadable([key], tombstone.id, { ...tombstone.sealed, head, body })
  })

  it('is refused when it was sealed for another record', async () => {
    await expectUnreadable([key], anId(), sealed)
    await expectUnreadable([key], id, tombstone.sealed)
  })

  it('is refused when head and body were sealed apart', async () => {
    const other = memoryStore()
    await plant(
      sealedStore(other, { keys: [key] }),
      id,
      anOutcome({ body: Buffer.from('{"balance":"9.99"}') }),
    )
    const { head, body } = await keptIn(other, id)
    await expectUnreadable([key], id, { ...sealed, body })
    await expectUnreadable([key], id, { ...sealed, head })
  })

  it('is refused when it has no seal', async () => {
    await expectUnreadable([key], id, SECRET)
    await expectUnreadable([key], id, { ...SECRET, body: null })
    await expectUnreadable([key], id, { ...SECRET, head: '' })
  })
})

describe('sealedStore › keys', () => {
  const [first, second, third] = [aSealingKey(), aSealingKey(), aSealingKey()]

  it('open what they sealed, whichever place they have', async () => {
    const { id, sealed } = await sealedForm(first, SECRET)
    for (const keys of [[first], [first, second], [second, first], [second, third, first], [first, first]])
      await expectReadable(keys, id, sealed, SECRET)
  })

  it('do not open what another one sealed', async () => {
    const { id, sealed } = await sealedForm(first, SECRET)
    await expectUnreadable([second], id, sealed)
    await expectUnreadable([second, third], id, sealed)
  })

  it('seal when they are the first', async () => {
    const inner = memoryStore()
    const id = anId()
    await plant(sealedStore(inner, { keys: [second, first] }), id, SECRET)
    const sealed = await keptIn(inner, id)
    await expectReadable([second], id, sealed, SECRET)
    await expectUnreadable([first], id, sealed)
  })

  it('can be changed while old outcomes are answered, in the order that the docs say', async () => {
    const inner = memoryStore()
    const [older, newer] = [anId(), anId()]
    const before = sealedStore(inner, { keys: [first] })
    const during = [
      sealedStore(inner, { keys: [first, second] }),
      sealedStore(inner, { keys: [second, first] }),
    ]
    await plant(before, older, SECRET)
    await plant(during[1] ?? before, newer, SECRET)
    for (const store of during)
      for (const id of [older, newer]) assertOutcome(await keptIn(store, id), SECRET)
    const after = sealedStore(inner, { keys: [second] })
    assertOutcome(await keptIn(after, newer), SECRET)
    await expect(after.find(older)).rejects.toMatchObject(UNREADABLE)
  })

  it('do not say that they fit by taking the name of another', async () => {
    const { id, sealed } = await sealedForm(first, SECRET)
    const { sealed: other } = await sealedForm(second, SECRET)
    const [, , firstName = ''] = sealed.head.split(' ')
    const [, , secondName = ''] = other.head.split(' ')
    const renamed = { ...sealed, head: sealed.head.replace(firstName, secondName) }
    await expectUnreadable([second], id, renamed)
    await expectUnreadable([first, second], id, renamed)
  })

  it('are one key, in whatever form they are given', async () => {
    const bytes = Buffer.from(first)
    const { id, sealed } = await sealedForm(first, SECRET)
    const base64 = bytes.toString('base64')
    const forms = [
      new Uint8Array(bytes),
      base64,
      base64.replace('=', ''),
      bytes.toString('base64url'),
      bytes.toString('hex'),
      bytes.toString('hex').toUpperCase(),
    ]
    for (const form of forms) await expectReadable([form], id, sealed, SECRET)
  })

  it('are copied: the bytes that were given may be wiped', async () => {
    const key = Uint8Array.from(first)
    const inner = memoryStore()
    const store = sealedStore(inner, { keys: [key] })
    key.fill(0)
    const id = anId()
    await plant(store, id, SECRET)
    await expectReadable([first], id, await keptIn(inner, id), SECRET)
  })

  const secret = 'not-a-key-but-nobody-should-see-it'
  it.each<[string, unknown, RegExp]>([
    ['no options', undefined, /option "keys" must be a list of at least one key/],
    ['no keys', {}, /option "keys" must be a list/],
    ['an empty list', { keys: [] }, /option "keys" must be a list/],
    ['a key that is not in a list', { keys: first }, /option "keys" must be a list/],
    ['a variable that is not set', { keys: [undefined] }, /option "keys\.0" .* got nothing/],
    ['a key that is too short', { keys: [first, new Uint8Array(16)] }, /option "keys\.1" .* got 16 bytes/],
    ['a text that is no key', { keys: [secret] }, /option "keys\.0" .* got a text of 34 characters/],
    ['a text of a shorter key', { keys: [randomBytes(16).toString('hex')] }, /got a text of 32 characters/],
    ['a text with a line feed', { keys: [`${Buffer.from(first).toString('hex')}\n`] }, /"keys\.0"/],
    ['a number', { keys: [7] }, /got a value of type number/],
    ['a word for a switch', { keys: [first], acceptUnsealed: 'no' }, /option "acceptUnsealed" .* got no/],
  ])('are refused at once: %s', (_, options, message) => {
    let refusal: unknown
    try {
      sealedStore(memoryStore(), options as never)
    } catch (error) {
      refusal = error
    }
    expect(refusal).toMatchObject({
      code: 'IDEMPOTENCY_OPTIONS_INVALID',
      message: expect.stringMatching(message),
    })
    expect(String(refusal)).not.toContain(secret)
  })

  it.each([undefined, {}, { claim: 1 }])('need a store to work for, and not %o', (store) => {
    expect(() => sealedStore(store as never, { keys: [first] })).toThrow(/must be a store/)
  })
})

/** Sealed with the key of the bytes 0 to 31. */
const OF_FIRST_VERSION: readonly { readonly outcome: Outcome; readonly sealed: Outcome }[] = [
  {
    outcome: anOutcome(),
    sealed: {
      result: 'succeeded',
      head: 'oncekey-sealed 1 okzsSKDW4k0 3r-15TMUb5a3pzhp',
      body: Buffer.from('UzOl3JCSOnO9AWTlko194CvJOpSEsnle0f7JE5Vg5eGQAXNM', 'base64url'),
    },
  },
  {
    outcome: anOutcome({ body: null }),
    sealed: {
      result: 'succeeded',
      head: 'oncekey-sealed 1 okzsSKDW4k0 npYsuW-JjfWjVrds wPBL0M5JdBVtrJLUzhpkkCBSrMKwJnhdk3ihcXFspXKT-g',
      body: null,
    },
  },
]

describe('sealedStore › format', () => {
  it('opens what the first version sealed', async () => {
    const id = 'YN1fYkoGkeKJqj5_dF0rFi-v4xyZ2HR-UEDjnvwcwvA'
    const key = Uint8Array.from({ length: 32 }, (_, index) => index)
    for (const { outcome, sealed } of OF_FIRST_VERSION) await expectReadable([key], id, sealed, outcome)
  })

  it('refuses what a later version sealed, and says so', async () => {
    const key = aSealingKey()
    const { id, sealed } = await sealedForm(key, SECRET)
    const later = { ...sealed, head: sealed.head.replace('oncekey-sealed 1', 'oncekey-sealed 2') }
    await expectUnreadable([key], id, later)
    for (const reading of await readings([key], id, later))
      await expect(reading).rejects.toThrow(/a format that this version does not know/)
  })
})

describe('sealedStore › acceptUnsealed', () => {
  const key = aSealingKey()

  it('answers what was kept before there was a seal, and seals what comes', async () => {
    const inner = memoryStore()
    const [older, newer] = [anId(), anId()]
    await plant(inner, older, SECRET)
    const store = sealedStore(inner, { keys: [key], acceptUnsealed: true })
    assertOutcome(await keptIn(store, older), SECRET)
    expect(await store.claim(aClaim({ id: older }))).toMatchObject({ status: 'completed', outcome: SECRET })
    await plant(store, newer, SECRET)
    await expectReadable([key], newer, await keptIn(inner, newer), SECRET)
  })

  it('still refuses a seal that it cannot open', async () => {
    const { id, sealed } = await sealedForm(aSealingKey(), SECRET)
    const inner = memoryStore()
    await plant(inner, id, sealed)
    const store = sealedStore(inner, { keys: [key], acceptUnsealed: true })
    await expect(store.claim(aClaim({ id }))).rejects.toMatchObject(UNREADABLE)
  })
})

/** A store that has everything a store can have. Its transactions are claims and completions of a memory store. */
function fullStore(): { readonly store: Required<IdempotencyStore>; readonly client: object } {
  const inner = memoryStore()
  const client = { name: 'the client of the store' }
  const { watch = async () => {}, sweep = async () => 0 } = inner
  return {
    client,
    store: {
      ...inner,
      watch,
      sweep,
      check: async () => ['a warning'],
      inbox: INBOX,
      async *list() {},
      remove: async () => false,
      async transaction(work, { attempts }) {
        // All but the last attempt are refused, as a database may do.
        for (let attempt = 1; attempt < attempts; attempt += 1) await work(client)
        const { value, completion } = await work(client)
        if (completion === undefined) return { committed: true, value }
        const { id, token, outcome, ttlMs } = completion
        const committed = await inner.complete(id, token, outcome, ttlMs)
        return committed ? { committed, value } : { committed }
      },
      async completeIn(execute, id, token, outcome, ttlMs) {
        const values = [id, outcome.head, outcome.body && Buffer.from(outcome.body)]
        await execute('update', values, Object.assign(['update'], { raw: ['update'] }))
        return inner.complete(id, token, outcome, ttlMs)
      },
    },
  }
}

/** It is handed on as it is. */
const INBOX = {} as InboxTable

const SETTINGS: TransactionSettings = {
  isolation: undefined,
  lockTimeoutMs: undefined,
  attempts: 2,
  signal: new AbortController().signal,
}

describe('sealedStore › what only some stores can do', () => {
  const key = aSealingKey()

  it('is there where the store can, and nowhere else', () => {
    const optional = ['transaction', 'completeIn', 'watch', 'sweep', 'check'] as const
    const has = (store: IdempotencyStore) => optional.filter((name) => name in store)
    const wrapped = (store: IdempotencyStore) => has(sealedStore(store, { keys: [key] }))
    expect(wrapped(fullStore().store)).toEqual([...optional])
    expect(wrapped(memoryStore())).toEqual(['watch', 'sweep'])
    const { claim, renew, complete, release, find, settle } = memoryStore()
    expect(wrapped({ claim, renew, complete, release, find, settle })).toEqual([])
  })

  it('is done by that store: watching, sweeping, checking', async () => {
    const inner = memoryStore()
    const checked = asInstance({ ...inner, check: async () => ['a warning'] })
    const store = sealedStore(checked, { keys: [key] })
    expect(await store.check?.()).toEqual(['a warning'])
    const claim = await lapsed(store)
    const watched = store.watch?.(claim.id, new AbortController().signal)
    await store.complete(claim.id, claim.token, SECRET, 1)
    await watched
    await expect.poll(() => inner.find(claim.id), PATIENTLY).toBeUndefined()
    expect(await store.sweep?.()).toBe(0)
  })

  it('seals what a transaction keeps, at every attempt, and hands on its client and its value', async () => {
    const { store: inner, client } = fullStore()
    const store = sealedStore(asInstance(inner), { keys: [key] })
    const claim = aClaim()
    await store.claim(claim)
    const clients: unknown[] = []
    const result = await store.transaction?.(async (given) => {
      clients.push(given)
      const { id, token } = claim
      return { value: 'value', completion: { id, token, outcome: SECRET, ttlMs: HOUR } }
    }, SETTINGS)
    expect(result).toEqual({ committed: true, value: 'value' })
    expect(clients).toEqual([client, client])
    expect((await keptIn(inner, claim.id)).head).not.toContain('iban')
    await expectReadable([key], claim.id, await keptIn(inner, claim.id), SECRET)
  })

  it('hands on what a transaction rejects with', async () => {
    const store = sealedStore(fullStore().store, { keys: [key] })
    const failure = new Error('rolled back')
    await expect(store.transaction?.(() => Promise.reject(failure), SETTINGS)).rejects.toBe(failure)
  })

  it('seals what is kept in a transaction of the application', async () => {
    const { store: inner } = fullStore()
    const store = sealedStore(asInstance(inner), { keys: [key] })
    const claim = aClaim()
    await store.claim(claim)
    const sent: unknown[] = []
    const execute = async (text: string, values: unknown[]) => {
      sent.push(text, ...values)
      return []
    }
    expect(await store.completeIn?.(execute, claim.id, claim.token, SECRET, HOUR)).toBe(true)
    expect(sent).toHaveLength(4)
    expect(JSON.stringify(sent)).not.toContain('iban')
    await expectReadable([key], claim.id, await keptIn(inner, claim.id), SECRET)
  })
})

describe('sealedStore › behind an engine', () => {
  it('answers a retry of a request with the bytes of its first answer', async () => {
    const store = sealedStore(memoryStore(), { keys: [aSealingKey()] })
    const { send } = await anApp((app) => void app.post('/', () => ({ id: randomUUID() })), {
      store,
      replayCache: false,
    })
    const key = aKey()
    const first = await send('/', { key })
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: true, bytes: first.bytes })
  })

  it.each([
    ['a wrong key', {}],
    ['a wrong key, where an outage lets handlers run', { onStoreOutage: 'run' as const }],
    ['a wrong key, where unknown operations run again', { onUnknown: 'rerun' as const }],
  ])('refuses a retry with 500 and runs nothing: %s', async (_, options) => {
    const inner = memoryStore()
    let runs = 0
    const appWith = (keys: readonly SealingKey[]) =>
      anApp((app) => void app.post('/', () => `run ${++runs}`), {
        ...options,
        store: sealedStore(inner, { keys }),
      })
    const [right, wrong] = [aSealingKey(), aSealingKey()]
    const key = aKey()
    const first = await (await appWith([right])).send('/', { key })
    const refused = await (await appWith([wrong])).send('/', { key })
    expect(refused).toMatchObject({ status: 500, code: UNREADABLE.code, isReplay: false })
    expect(refused.headers['retry-after']).toBeUndefined()
    expect(JSON.parse(refused.bytes.toString())).toMatchObject({
      title: 'Outcome unreadable',
      detail: expect.stringContaining('Do not send it again under a new key'),
      retryable: false,
    })
    const later = await (await appWith([wrong, right])).send('/', { key })
    expect(later).toMatchObject({ status: 200, isReplay: true, bytes: first.bytes })
    expect(runs).toBe(1)
  })

  it('refuses a retry of run() with the error itself, and runs nothing', async () => {
    const inner = memoryStore()
    let runs = 0
    const call = (keys: readonly SealingKey[]) =>
      createIdempotency({ store: sealedStore(inner, { keys }) }).run(
        { scope: 'acme', key: 'k' },
        () => ++runs,
      )
    const right = aSealingKey()
    expect(await call([right])).toBe(1)
    await expect(call([aSealingKey()])).rejects.toMatchObject(UNREADABLE)
    expect(await call([right])).toBe(1)
  })
})

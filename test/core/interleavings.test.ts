import { beforeAll, describe, expect, it } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { memoryStore } from '../../src/stores/memory.js'
import { explore } from '../support/interleavings.js'
import { functions, loadLibrary, requests } from '../support/modelled-services.js'
import {
  doesNothing,
  type ModelledClient,
  type ProtocolModel,
  paysAndFails,
  paysInTransaction,
} from '../support/protocol-model.js'
import { type Ending, type Libraries, protocolWorlds } from '../support/protocol-world.js'
import { inSteppedTime } from '../support/stepped-time.js'

// Two clients send a request with one key, and everything that may happen is tried in every order: their store calls and
// the answers to them, the effects of their handlers, a crash of a process, a lapse of the lease, a renewal, a lost call.
// `life-of-a-key.ts` says what a store must answer, `key-ledger.ts` what handlers may do and clients may be told. When
// all is over, retries with the same request and with another find out what was promised for later.
//
// The numbers of schedules are exact. They change when the protocol takes another step, and when a model loses one: see
// which it was before you write down the new number.

const A: ModelledClient = { name: 'A', process: 'P' }
const B: ModelledClient = { name: 'B', process: 'Q' }
/** Another client of the process that A uses. */
const C: ModelledClient = { name: 'C', process: 'P' }
const twoServers = [A, B]
const oneServer = [A, C]

const crash = { mishaps: { P: { crashes: 1 } }, lapses: 1 } as const
const loss = { mishaps: { P: { losses: 1 } }, lapses: 1 } as const
const renewal = { mishaps: { P: { ticks: 1 } }, lapses: 1 } as const
const timeout = { ...renewal, storeTimeoutMs: 2000 } as const

type Case = readonly [what: string, schedules: number, model: Partial<ProtocolModel>]

let libraries: Libraries

beforeAll(async () => {
  libraries = { P: await loadLibrary(), Q: await loadLibrary(), R: await loadLibrary() }
})

describe.each([
  ['run()', functions],
  ['HTTP', requests],
])('%s, in every interleaving of two clients', (_name, service) => {
  it.each<Case>([
    ['a crash', 33, { ...crash }],
    ['a crash, where the unknown runs again', 48, { ...crash, onUnknown: 'rerun' }],
    ['a crash of a handler that fails', 33, { ...crash, clients: [{ ...A, handler: paysAndFails }, B] }],
    [
      'a crash of a handler that does nothing',
      35,
      { ...crash, clients: [{ ...A, handler: doesNothing }, B] },
    ],
    ['a crash, and another request', 33, { ...crash, clients: [A, { ...B, input: 'another' }] }],
    [
      'a crash of the server that gets another request',
      33,
      { ...crash, clients: [B, { ...A, input: 'another' }] },
    ],
    ['a crash of a transaction', 78, { ...crash, clients: transacting(twoServers), atomic: true }],
    ['a lost call', 28, { ...loss }],
    ['a lost call of a handler that fails', 28, { ...loss, clients: [{ ...A, handler: paysAndFails }, B] }],
    [
      'a lost call of a handler that does nothing',
      30,
      { ...loss, clients: [{ ...A, handler: doesNothing }, B] },
    ],
    ['a lost call of a transaction', 144, { ...loss, clients: transacting(twoServers), atomic: true }],
  ])('keeps its promises with %s (%i schedules)', (_what, schedules, model) =>
    expectSchedules(schedules, { service, ...model }),
  )
})

describe('two servers, in every interleaving', () => {
  it.each<Case>([
    ['a crash and a renewal', 544, { mishaps: { P: { crashes: 1, ticks: 1 } }, lapses: 1 }],
    [
      'a crash, and a renewal of the other',
      475,
      { mishaps: { P: { crashes: 1 }, Q: { ticks: 1 } }, lapses: 1 },
    ],
    ['two lapses and a crash', 90, { ...crash, lapses: 2, onUnknown: 'rerun' }],
    ['a renewal, rerun', 510, { ...renewal, onUnknown: 'rerun' }],
    ['a lost call, rerun', 42, { ...loss, onUnknown: 'rerun' }],
    ['a lost call while time passes', 224, { mishaps: { P: { losses: 1, ticks: 1 } } }],
    ['calls that take too long', 334, { ...timeout, lapses: 0, mishaps: { P: { ticks: 2 } } }],
    ['calls that take too long, rerun', 312, { ...timeout, onUnknown: 'rerun' }],
    ['a crash, and an application that settles it', 56, { ...crash, onUnknown: 'settle' }],
    ['a lost call, and an application that settles it', 50, { ...loss, onUnknown: 'settle' }],
    [
      'another request, rerun',
      33,
      { ...crash, clients: [A, { ...B, input: 'another' }], onUnknown: 'rerun' },
    ],
    [
      'a first that did nothing, rerun',
      44,
      { ...crash, clients: [{ ...A, handler: doesNothing }, B], onUnknown: 'rerun' },
    ],
    [
      'a second that did nothing, rerun',
      57,
      { ...crash, clients: [A, { ...B, handler: doesNothing }], onUnknown: 'rerun' },
    ],
  ])('keep their promises with %s (%i schedules)', (_what, schedules, model) =>
    expectSchedules(schedules, model),
  )
})

describe('transactions, in every interleaving', () => {
  const clients = transacting(twoServers)
  it.each<Case>([
    ['a renewal', 133, { ...renewal, lapses: 0, clients, atomic: true }],
    ['a crash, where the unknown is refused', 59, { ...crash, clients }],
    [
      'a commit that takes too long, and may be lost',
      1074,
      { ...timeout, lapses: 0, mishaps: { P: { ticks: 1, losses: 1 } }, clients, atomic: true },
    ],
  ])('keep their promises with %s (%i schedules)', (_what, schedules, model) =>
    expectSchedules(schedules, model),
  )
})

describe('duplicates that wait, in every interleaving', () => {
  it.each<Case>([
    ['a crash', 62, { ...crash, waits: true }],
    ['a crash, rerun', 77, { ...crash, waits: true, onUnknown: 'rerun' }],
    ['looks at the record', 129, { waits: true, mishaps: { Q: { ticks: 1 } } }],
    ['a first that did nothing', 66, { ...crash, waits: true, clients: [{ ...A, handler: doesNothing }, B] }],
    ['a crash of the process of both', 153, { ...crash, waits: true, clients: oneServer }],
    [
      'a first in their process that did nothing',
      219,
      { ...crash, waits: true, clients: [{ ...A, handler: doesNothing }, C] },
    ],
  ])('keep their promises with %s (%i schedules)', (_what, schedules, model) =>
    expectSchedules(schedules, model),
  )
})

describe('one server, in every interleaving of two clients', () => {
  it.each<Case>([
    ['a crash', 113, { ...crash, clients: oneServer }],
    ['a renewal, rerun', 1044, { ...renewal, clients: oneServer, onUnknown: 'rerun' }],
    ['a lost call, rerun', 96, { ...loss, clients: oneServer, onUnknown: 'rerun' }],
    ['a crash of transactions', 253, { ...crash, clients: transacting(oneServer), atomic: true }],
    [
      'another request, rerun',
      113,
      { ...crash, clients: [A, { ...C, input: 'another' }], onUnknown: 'rerun' },
    ],
  ])('keeps its promises with %s (%i schedules)', (_what, schedules, model) =>
    expectSchedules(schedules, model),
  )
})

describe('the exploration', () => {
  it.each<Case>([
    ['a crash', 367, { mishaps: { P: { crashes: 1 } } }],
    ['a lost call', 338, { mishaps: { P: { losses: 1 } } }],
    ['duplicates that wait', 478, { waits: true }],
    ['transactions', 238, { clients: transacting(twoServers), atomic: true }],
  ])('leaves out no ending with %s, of %i schedules', async (_what, schedules, model) => {
    const endings = async (reduced: boolean): Promise<ReadonlySet<string>> => {
      const seen = new Set<string>()
      const explored = await exploreAll(model, {
        reduced,
        onEnding: (ending) => seen.add(JSON.stringify(ending)),
      })
      if (!reduced) expect(explored).toEqual({ schedules })
      return seen
    }
    expect(await endings(true)).toEqual(await endings(false))
  })

  it('tells the history of a schedule that breaks a promise', async () => {
    const createStore = (): IdempotencyStore => {
      const store = memoryStore()
      return { ...store, claim: (request) => store.claim({ ...request, takeOver: true }) }
    }
    const broken = await exploreAll({ createStore, lapses: 1 }).catch((error: Error) => error.message)
    expect(broken).toMatchInlineSnapshot(`
      "the store answered a claim with {"status":"acquired","fence":2}, where the life of a key says {"status":"unknown","fingerprint":"AoeqNolB4gKtiL4B1DajG8yYiVb151669QyDtEth7d4","fence":1}
      the store answered a look at the record with {"status":"running","fingerprint":"AoeqNolB4gKtiL4B1DajG8yYiVb151669QyDtEth7d4","fence":2}, where the life of a key says {"status":"unknown","fingerprint":"AoeqNolB4gKtiL4B1DajG8yYiVb151669QyDtEth7d4","fence":1}
      after 4 schedules without a breach, in this one:
          1. P: A sends its request
          2. Q: B sends its request
          3. P: its claim reaches the store: acquired, fence 1
          4. P: hears the answer to its claim
          5. P: the handler of A pays, under fence 1
          6. the lease LAPSES
          7. Q: its claim reaches the store: acquired, fence 2"
    `)
  })
})

function transacting(clients: readonly ModelledClient[]): readonly ModelledClient[] {
  return clients.map((client) => ({ ...client, handler: paysInTransaction }))
}

async function expectSchedules(schedules: number, model: Partial<ProtocolModel>): Promise<void> {
  expect(await exploreAll(model)).toEqual({ schedules })
}

function exploreAll(
  model: Partial<ProtocolModel>,
  given: { readonly reduced?: boolean; readonly onEnding?: (ending: Ending) => void } = {},
): Promise<{ readonly schedules: number }> {
  const { reduced = true, onEnding } = given
  const complete: ProtocolModel = { service: functions, clients: twoServers, ...model }
  return inSteppedTime(() => explore(protocolWorlds(complete, libraries, onEnding), { reduced }))
}

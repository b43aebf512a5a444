import { createHash } from 'node:crypto'
import { Writable } from 'node:stream'
import Fastify from 'fastify'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { NothingHappenedError } from '../../src/index.js'
import { memoryStore } from '../../src/stores/memory.js'
import {
  type AuditLine,
  type AuditOptions,
  auditLine,
  auditLog,
  type MessageEvent,
  writeAudit,
} from '../../src/telemetry/audit-log.js'
import { aKey, anApp, send } from '../support/fastify-app.js'
import { aTelemetryWorld, type TelemetryWorld } from '../support/telemetry-world.js'

interface Written {
  readonly level: 'info' | 'warn'
  readonly line: AuditLine
  readonly message: string
}

function aLogger() {
  const written: Written[] = []
  const at =
    (level: Written['level']) =>
    (line: object, message: string): void =>
      void written.push({ level, line: line as AuditLine, message })
  return { written, logger: { info: at('info'), warn: at('warn') } }
}

function hashOf(key: string): string {
  return `sha256:${createHash('sha256').update(key).digest('hex').slice(0, 16)}`
}

const ISO = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)

describe('auditLog', () => {
  let world: TelemetryWorld
  let written: readonly Written[]
  let open: (options?: AuditOptions) => () => void

  beforeEach(async () => {
    const logger = aLogger()
    written = logger.written
    world = await aTelemetryWorld((app) => {
      open = (options) => auditLog(app.idempotency, logger.logger, options)
    })
  })
  afterEach(() => world.close())

  it('writes one line for each thing that is out of the usual, and none for a first request', async () => {
    const end = open()
    const { pay, orphan } = world
    const [key, lost] = [aKey(), aKey()]
    await pay(key)
    expect(written).toEqual([])
    await pay(key)
    await pay(key, { amount: 7 })
    const before = Date.now()
    await orphan(lost)
    await pay(lost)
    const common = { audit: 'oncekey', at: ISO, route: 'POST /payments', id: expect.any(String) }
    expect(written.map(({ line }) => line)).toEqual([
      {
        ...common,
        event: 'replay',
        scope: expect.any(String),
        key: hashOf(key),
        completed: ISO,
        source: 'store',
      },
      { ...common, event: 'mismatch', scope: expect.any(String), key: hashOf(key) },
      {
        ...common,
        event: 'unknown',
        scope: expect.any(String),
        key: hashOf(lost),
        firstSeen: ISO,
        fence: 1,
      },
    ])
    expect(Date.parse(written[2]?.line.firstSeen ?? '')).toBeGreaterThanOrEqual(before)
    expect(written.map(({ level }) => level)).toEqual(['info', 'warn', 'warn'])
    expect(JSON.stringify(written)).not.toContain(key)
    expect(JSON.stringify(written)).not.toContain('acme')
    end()
    await pay(key)
    expect(written).toHaveLength(3)
  })

  it('writes a line for a duplicate that is refused while the first runs', async () => {
    open()
    const key = aKey()
    const first = world.pay(key, { path: '/held' })
    await expect
      .poll(() => world.pay(key, { path: '/held' }).then(({ status }) => status), { timeout: 20_000 })
      .toBe(409)
    world.held.open()
    await first
    expect(written[0]).toMatchObject({ level: 'info', line: { event: 'in-progress', route: 'POST /held' } })
  })

  it('shows the key, leaves it out, and lets the application have the last word', async () => {
    const ends = [
      open({ key: 'plain' }),
      open({ key: 'omit' }),
      open({ redact: ({ route: _route, ...line }) => line }),
      open({ redact: () => undefined }),
    ]
    const key = aKey()
    await world.pay(key)
    await world.pay(key)
    for (const end of ends) end()
    const [plain, omitted, redacted, ...more] = written.map(({ line }) => line)
    expect(plain).toMatchObject({ key })
    expect(omitted).not.toHaveProperty('key')
    expect(redacted).toMatchObject({ event: 'replay', key: hashOf(key) })
    expect(redacted).not.toHaveProperty('route')
    expect(more).toEqual([])
  })

  it('says why a request ran without protection by its code, and nothing of the error’s words', async () => {
    const { logger, written: lines } = aLogger()
    const { app } = await anApp(
      (it) => {
        auditLog(it.idempotency, logger)
        it.post('/payments', () => ({ paid: true }))
      },
      {
        store: {
          ...memoryStore(),
          claim: () => Promise.reject(new Error('password authentication failed for user "alice"')),
        },
        onStoreOutage: 'run',
      },
    )
    expect((await send(app, '/payments', { key: aKey() })).status).toBe(200)
    expect(lines).toMatchObject([
      { level: 'warn', line: { event: 'unprotected', error: 'IDEMPOTENCY_STORE_UNAVAILABLE' } },
    ])
    expect(JSON.stringify(lines)).not.toContain('alice')
    await app.close()
  })
})

describe('auditLog, of unknown operations that are found out about', () => {
  async function aDeadOperation() {
    const store = memoryStore()
    const dying = await anApp(
      (app) => {
        app.post('/payments', () => new Promise(() => {}))
      },
      { store, lease: '100ms', maxRun: '100ms' },
    )
    const key = aKey()
    send(dying.app, '/payments', { key }).catch(() => {})
    return { store, key, dying: dying.app }
  }

  it('writes a line for a take-over, with its fence', async () => {
    const { store, key, dying } = await aDeadOperation()
    const { logger, written } = aLogger()
    const { app } = await anApp(
      (it) => {
        auditLog(it.idempotency, logger)
        it.post('/payments', () => ({ paid: true }))
      },
      { store, onUnknown: 'rerun' },
    )
    await expect
      .poll(() => send(app, '/payments', { key }).then(({ status }) => status), { timeout: 20_000 })
      .toBe(200)
    const takeOvers = written.filter(({ line }) => line.event === 'take-over')
    expect(takeOvers).toMatchObject([
      { level: 'warn', line: { fence: 2, key: hashOf(key), route: 'POST /payments' } },
    ])
    await Promise.all([app.close(), dying.close()])
  })

  it('writes a line for what the application answered, and for its failure', async () => {
    const { store, key, dying } = await aDeadOperation()
    const { logger, written } = aLogger()
    let asked = 0
    const { app } = await anApp(
      (it) => {
        auditLog(it.idempotency, logger)
        it.post('/payments', () => ({ paid: true }))
      },
      {
        store,
        onUnknown: async () => {
          asked += 1
          if (asked === 1) throw new NothingHappenedError('the provider is away')
          return { outcome: { status: 201, body: { paid: true } } }
        },
      },
    )
    await expect
      .poll(() => send(app, '/payments', { key }).then(({ status }) => status), { timeout: 20_000 })
      .toBe(201)
    const told = written.filter(({ line }) => line.event.startsWith('reconcile'))
    expect(told.map(({ line }) => line)).toMatchObject([
      { event: 'reconcile-failed', fence: 1, firstSeen: ISO },
      { event: 'reconciled', answer: 'outcome', fence: 1, firstSeen: ISO },
    ])
    await Promise.all([app.close(), dying.close()])
  })
})

describe('auditLog, of an inbox', () => {
  it('writes a line for duplicates, for the dead, and for those that are sent again', () => {
    const { logger, written } = aLogger()
    let tell: (event: MessageEvent) => void = () => {}
    auditLog(
      {
        on(listener: (event: MessageEvent) => void) {
          tell = listener
          return () => {}
        },
      },
      logger,
    )
    const message = { consumer: 'billing', source: 'orders', key: 'order-17', keyKind: 'custom' } as const
    const delivered = { type: 'message', message, attempt: 1, redelivered: false, durationMs: 3 } as const
    tell({ ...delivered, result: 'processed' })
    tell({ ...delivered, result: 'duplicate' })
    tell({
      type: 'message-failed',
      message,
      attempt: 1,
      redelivered: false,
      error: new Error('no'),
      durationMs: 3,
    })
    tell({ type: 'message-dead', message, attempts: 3, error: new TypeError('order-17 is not payable') })
    tell({ type: 'message-redriven', message })
    const common = {
      audit: 'oncekey',
      at: ISO,
      consumer: 'billing',
      topic: 'orders',
      key: hashOf('order-17'),
    }
    expect(written.map(({ line }) => line)).toEqual([
      { ...common, event: 'message-duplicate' },
      { ...common, event: 'message-dead', attempts: 3, error: 'TypeError' },
      { ...common, event: 'message-redriven' },
    ])
    expect(JSON.stringify(written)).not.toContain('order-17')
  })
})

describe('auditLine', () => {
  const settlement = {
    event: 'settled',
    id: 'record',
    scope: 'scope-hash',
    key: 'order-17',
    route: 'POST /payments',
    fence: 2,
    firstSeenAt: 0,
    by: 'ops@example.com',
  } as const

  it('makes the line of a settlement, redacted like any other', () => {
    expect(auditLine(settlement)).toEqual({
      audit: 'oncekey',
      event: 'settled',
      at: ISO,
      id: 'record',
      scope: 'scope-hash',
      key: hashOf('order-17'),
      route: 'POST /payments',
      fence: 2,
      firstSeen: '1970-01-01T00:00:00.000Z',
      by: 'ops@example.com',
    })
  })

  it('is written as a warning', () => {
    const { logger, written } = aLogger()
    expect(writeAudit(logger, settlement, { key: 'omit' })).not.toHaveProperty('key')
    expect(written).toMatchObject([{ level: 'warn', message: 'An unknown operation was settled' }])
  })
})

describe('auditLog, with options that are wrong', () => {
  it.each([
    [{ key: 'none' }, '"key"'],
    [{ redact: ['key'] }, '"redact"'],
    [{ keys: 'plain' }, '"keys"'],
  ])('refuses %o at start', (options, name) => {
    const source = { on: () => () => {} }
    expect(() => auditLog(source, aLogger().logger, options as object)).toThrow(name)
  })
})

describe('auditLog, through pino', () => {
  it('writes lines of JSON', async () => {
    const lines: string[] = []
    const stream = new Writable({
      write(chunk, _encoding, done) {
        lines.push(String(chunk))
        done()
      },
    })
    const app = Fastify({ logger: { stream } })
    await app.register(idempotency, { store: memoryStore(), scope: 'shared' })
    auditLog(app.idempotency, app.log)
    app.post('/payments', () => ({ paid: true }))
    const key = aKey()
    await send(app, '/payments', { key })
    await send(app, '/payments', { key })
    await app.close()
    // Twice the same name in a line would be read in one way here, and in another there.
    for (const line of lines) expect(line.match(/"time":/g)).toHaveLength(1)
    const parsed = lines.map((line) => JSON.parse(line) as Record<string, unknown>)
    expect(parsed.filter(({ audit }) => audit === 'oncekey')).toMatchObject([
      { event: 'replay', route: 'POST /payments', key: hashOf(key) },
    ])
  })
})

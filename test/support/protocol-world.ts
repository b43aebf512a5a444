import { memoryStore } from '../../src/stores/memory.js'
import { EVERYTHING, type Step, type World } from './interleavings.js'
import { type Asker, type Expected, keyLedger, type Reply } from './key-ledger.js'
import {
  type Host,
  LEASE_MS,
  type ModelledServer,
  type Scene,
  SETTLED,
  startHost,
  startServer,
} from './modelled-server.js'
import { type Library, textOf } from './modelled-services.js'
import { type ProtocolModel, pays, paysInTransaction } from './protocol-model.js'
import { STORE } from './stepped-line.js'
import type { ParkedStep, SteppedProcess } from './stepped-process.js'
import { byClock, fireNext, nextTimer, runOut, steppedClock, turn } from './stepped-time.js'

/** A copy of the library for each process: two servers, and one that is started when all is over. */
export type Libraries = Readonly<Record<'P' | 'Q' | 'R', Library>>

/** How a schedule ended. */
export interface Ending {
  readonly replies: Readonly<Record<string, string>>
  readonly effects: number
  readonly state: string
  readonly fence: number
}

const MOST_TICKS = 300
/** What a client says where its model says nothing else. */
const SAME = 'the same'

/** Makes the worlds of a model, each like the other, one after the other. */
export function protocolWorlds(
  model: ProtocolModel,
  libraries: Libraries,
  onEnding: (ending: Ending) => void = () => {},
): () => World {
  const hosts = {
    P: startHost('P', model, libraries.P),
    Q: startHost('Q', model, libraries.Q),
    R: startHost('R', model, libraries.R),
  }
  let startMs = LEASE_MS
  let worlds = 0
  return () => {
    worlds += 1
    const onGone = (atMs: number): void => {
      startMs = atMs
    }
    // No two worlds have a key in common.
    return createWorld({ model, hosts, key: `invoice-${worlds}`, startMs, onEnding, onGone })
  }
}

interface WorldParts {
  readonly model: ProtocolModel
  readonly hosts: Readonly<Record<keyof Libraries, Host>>
  readonly key: string
  readonly startMs: number
  readonly onEnding: (ending: Ending) => void
  readonly onGone: (atMs: number) => void
}

/** A server, and what may still go wrong in it. */
interface Server extends ModelledServer {
  readonly left: { crashes: number; ticks: number; losses: number }
}

function createWorld({ model, hosts, key, startMs, onEnding, onGone }: WorldParts): World {
  const { service, clients, atomic = false, onUnknown = atomic ? 'rerun' : 'reject' } = model
  const ledger = keyLedger({
    rerun: onUnknown === 'rerun',
    atomic,
    settledText: onUnknown === 'settle' ? JSON.stringify(SETTLED) : undefined,
  })
  const scene: Scene = {
    model,
    key,
    startMs,
    ledger,
    history: [],
    inner: (model.createStore ?? memoryStore)(),
    storeClock: steppedClock(startMs),
    lock: { heldBy: undefined },
    replies: new Map(),
  }
  const { history, inner, storeClock, lock, replies } = scene
  let lapses = 0
  let changesSeen = 0
  let isOver = false

  const servers: Server[] = [...new Set(clients.map(({ process }) => process))].map((name) => {
    const { crashes = 0, ticks = 0, losses = 0 } = model.mishaps?.[name] ?? {}
    return { ...startServer(hosts[name], scene), left: { crashes, ticks, losses } }
  })
  for (const { name, process: at, handler = pays, input = SAME } of clients) {
    const server = servers.find(({ process }) => process.name === at)
    if (server === undefined) throw new Error(`There is no process ${at}`)
    const asker: Asker = { name, process: at, fingerprint: service.fingerprint(input) }
    server.askers.push(asker)
    const take = (): void => server.send(asker, handler, input)
    server.process.park({ what: `${name} sends its request`, touches: [], take })
  }

  /** Does something in a process, lets everything follow from it, and checks what must hold in every state. */
  async function act({ process }: Server, work: () => void): Promise<void> {
    await turn(process.clock, work)
    await look()
  }

  async function look(): Promise<void> {
    const { id, life } = ledger
    if (id !== undefined && life.changes !== changesSeen) {
      changesSeen = life.changes
      life.compare(await byClock(storeClock, () => inner.find(id)))
    }
    ledger.look()
    if (!isOver && servers.every(({ process }) => process.parked.length === 0))
      for (const asker of unanswered()) ledger.waits(asker)
    if (ledger.breaches.length > 0) throw new Error(ledger.breaches.join('\n'))
  }

  function live(): readonly Server[] {
    return servers.filter(({ process }) => process.state !== 'crashed')
  }

  function unanswered(): readonly Asker[] {
    return live().flatMap(({ askers }) => askers.filter((asker) => !replies.has(asker)))
  }

  /** Whether nothing will happen in a process by itself. */
  function isIdle({ process, askers }: Server): boolean {
    if (process.parked.length > 0 || askers.some((asker) => !replies.has(asker))) return false
    return !ledger.hasFailed(process.name) || !hasTimer(process)
  }

  /** Timers that are further away than a lease are those of store calls that never time out. */
  function hasTimer({ clock }: SteppedProcess): boolean {
    const timer = nextTimer(clock)
    return timer !== undefined && timer.atMs - clock.nowMs <= LEASE_MS
  }

  /** Lets the time of a process pass, until something happens in it. */
  async function tick({ process, line }: Server): Promise<void> {
    const { name, clock, doings: before } = process
    history.push(`${name}: time passes`)
    while (process.doings === before && hasTimer(process)) {
      clock.nowMs = Math.max(clock.nowMs, nextTimer(clock)?.atMs ?? 0)
      line.noteTimeouts()
      await fireNext(clock)
    }
    await look()
  }

  function steps(): readonly Step[] {
    if (isOver) return []
    const needed = live().flatMap((server) => [...parkedSteps(server), ...ticks(server)])
    const optional = [...live().flatMap(crashes), ...lapse()]
    if (needed.length > 0) return [...needed, ...optional]
    if (optional.length === 0) return []
    return [...optional, { id: 'no more', touches: [EVERYTHING], isOptional: true, take: end }]

    function end(): void {
      isOver = true
    }
  }

  function parkedSteps(server: Server): readonly Step[] {
    return server.process.parked.filter(canBeTaken).flatMap((parked) => takeOrLose(server, parked))
  }

  function canBeTaken({ touches, holdsRow }: ParkedStep): boolean {
    return lock.heldBy === undefined || !touches.includes(STORE) || holdsRow === true
  }

  function takeOrLose(server: Server, parked: ParkedStep): readonly Step[] {
    const { process, left } = server
    const taking: Step = {
      id: parked.id,
      touches: touchedBy(server, parked.touches),
      take() {
        history.push(`${process.name}: ${parked.what}`)
        return act(server, () => process.take(parked))
      },
    }
    if (parked.lose === undefined || left.losses === 0) return [taking]
    const losing: Step = {
      id: `${parked.id} is lost`,
      touches: touchedBy(server, []),
      take() {
        left.losses -= 1
        history.push(`${process.name}: ${parked.what} - NOT, it is lost`)
        return act(server, () => process.take(parked, 'lose'))
      },
    }
    return [taking, losing]
  }

  function ticks(server: Server): readonly Step[] {
    const { process, left } = server
    if (left.ticks === 0 || isIdle(server) || !hasTimer(process)) return []
    const take = (): Promise<void> => {
      left.ticks -= 1
      return tick(server)
    }
    return [{ id: `${process.name} ticks`, touches: touchedBy(server, []), take }]
  }

  function crashes(server: Server): readonly Step[] {
    const { process, left } = server
    if (left.crashes === 0 || isIdle(server)) return []
    const take = (): void => {
      history.push(`${process.name} CRASHES`)
      process.crash()
      if (lock.heldBy === process.name) lock.heldBy = undefined
    }
    return [{ id: `${process.name} crashes`, touches: touchedBy(server, []), isOptional: true, take }]
  }

  function lapse(): readonly Step[] {
    if (lapses === (model.lapses ?? 0) || ledger.life.state !== 'running') return []
    return [{ id: `lapse ${lapses + 1}`, touches: [STORE], isOptional: true, take: letLapse }]
  }

  function letLapse(): void {
    lapses += 1
    storeClock.nowMs += LEASE_MS
    history.push('the lease LAPSES')
    ledger.life.lapsed()
  }

  /**
   * What a step of a process touches, beside what it says itself: the store as well, where that may wake the process, and
   * where one of the two waits for the other.
   */
  function touchedBy({ process, store }: Server, others: readonly string[]): readonly string[] {
    const { name, parked } = process
    const isTied = store.isWatching || lock.heldBy === name || !parked.every(canBeTaken)
    return isTied && !others.includes(STORE) ? [name, STORE] : [name, ...others]
  }

  /** Lets all come to an end, and finds out by retries whether what was promised is so. */
  async function finish(): Promise<void> {
    isOver = true
    history.push('-- From here on nothing goes wrong, and time passes.')
    for (const { process } of live()) process.free()
    for (let ticks = 0; ; ticks += 1) {
      const busy = live().find((server) => !isIdle(server))
      if (busy === undefined) break
      if (ticks === MOST_TICKS || !hasTimer(busy.process)) throw new Error(`${busy.process.name} hangs`)
      await tick(busy)
    }
    ledger.reckon({ hasCrashed: live().length < servers.length })
    if (ledger.breaches.length > 0) throw new Error(ledger.breaches.join('\n'))
    onEnding(ending())
    const started = startServer(hosts.R, scene)
    started.process.free()
    servers.push({ ...started, left: { crashes: 0, ticks: 0, losses: 0 } })
    await retryEverywhere()
    if (ledger.life.state !== 'running') return
    letLapse()
    await retryEverywhere()
  }

  function ending(): Ending {
    const { effects, life } = ledger
    const shown = [...replies]
      .sort(([one], [other]) => (one.name < other.name ? -1 : 1))
      .map(([{ name }, reply]) => [name, textOf(reply)])
    return { replies: Object.fromEntries(shown), effects, state: life.state, fence: life.fence }
  }

  async function retryEverywhere(): Promise<void> {
    const asked = live()
    const refuse = async (): Promise<void> => {
      const [last] = asked.slice(-1)
      if (last !== undefined && ledger.life.state !== 'absent') await retry(last, 'something else')
    }
    await refuse()
    for (const server of asked) await retry(server, inputOfRecord())
    // Once more, where the answer is remembered by now.
    await refuse()
  }

  function inputOfRecord(): string {
    const inputs = clients.map(({ input = SAME }) => input)
    return inputs.find((input) => service.fingerprint(input) === ledger.life.fingerprint) ?? inputs[0] ?? SAME
  }

  async function retry(server: Server, input: string): Promise<void> {
    const { name } = server.process
    const fingerprint = service.fingerprint(input)
    const asker: Asker = { name: `retry-at-${name}`, process: name, fingerprint }
    const expected = ledger.expectedFor(fingerprint)
    const before = ledger.effects
    history.push(`${asker.name} sends "${input}", and must be met with: ${expected}`)
    await act(server, () => server.send(asker, atomic ? paysInTransaction : pays, input))
    const reply = replies.get(asker)
    const met = reply === undefined ? 'nothing' : metWith(reply, ledger.effects - before)
    if (met !== expected) throw new Error(`${asker.name} was met with ${met}, not with ${expected}`)
  }

  return {
    history,
    steps,
    async end(how) {
      try {
        if (how === 'over') await finish()
      } finally {
        const clocks = [storeClock, ...servers.map(({ process }) => process.clock)]
        const atMs = await runOut(clocks, () => {
          for (const { process, line } of servers) {
            process.leave()
            line.leave()
          }
        })
        onGone(atMs)
      }
    },
  }
}

const REFUSED: Readonly<Record<string, Expected>> = {
  IDEMPOTENCY_KEY_REUSED: 'mismatch',
  IDEMPOTENCY_KEY_IN_PROGRESS: 'in-progress',
  IDEMPOTENCY_OUTCOME_UNKNOWN: 'unknown',
}

function metWith(reply: Reply, effects: number): string {
  if (reply.kind === 'answer') return effects > 0 ? 'run' : 'replay'
  return REFUSED[reply.code] ?? reply.code
}

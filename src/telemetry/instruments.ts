import type { IdempotencyEvent, StoreStep } from '../core/events.js'
import { MESSAGE_INSTRUMENTS } from './message-instruments.js'

/** One thing that is measured, under its names in both worlds. */
export interface Instrument {
  readonly kind: 'counter' | 'gauge' | 'histogram'
  /** The name for Prometheus, after the prefix. */
  readonly prometheus: string
  /** The name for OpenTelemetry. */
  readonly openTelemetry: string
  /** The unit, as OpenTelemetry writes it. */
  readonly unit: string
  readonly help: string
  /** All have few values: a route, an outcome, a step. Never a key or a scope. */
  readonly labels: readonly string[]
  /** What the labels can be that say what became of something: those series are there before it happens. */
  readonly known?: readonly Readonly<Record<string, string>>[]
  /** What a histogram of seconds is cut into. */
  readonly buckets?: readonly number[]
}

const STORE_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]
const RUN_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]
const AGE_BUCKETS = [0.1, 1, 5, 15, 60, 300, 1800, 3600, 21_600, 86_400, 604_800]

const OUTCOMES = [
  'run',
  'replay',
  'in-progress',
  'mismatch',
  'unknown',
  'unprotected',
  'refused',
] as const satisfies readonly ('run' | 'replay' | IdempotencyEvent['type'])[]

const TROUBLES = [
  'claim-lost',
  'outcome-lost',
  'max-run',
  'renewal-failed',
  'save-failed',
  'save-abandoned',
  'body-not-kept',
  'claim-abandoned',
  'release-failed',
  'commit-undecided',
] as const satisfies readonly IdempotencyEvent['type'][]

const STEPS = [
  'claim',
  'renew',
  'complete',
  'release',
  'find',
  'settle',
  'sweep',
  'check',
  'begin',
  'commit',
  'rollback',
  'note',
  'redrive',
  'forget',
] as const satisfies readonly StoreStep[]

/** Everything that is measured of an engine, and of an inbox. */
export const INSTRUMENTS = {
  requests: {
    kind: 'counter',
    prometheus: 'requests_total',
    openTelemetry: 'oncekey.requests',
    unit: '{request}',
    help: 'Requests and calls with a key, by what became of them.',
    labels: ['route', 'outcome'],
    known: OUTCOMES.map((outcome) => ({ outcome })),
  },
  claims: {
    kind: 'counter',
    prometheus: 'claims_total',
    openTelemetry: 'oncekey.claims',
    unit: '{claim}',
    help: 'Keys that were claimed for the first time.',
    labels: ['route'],
  },
  takeOvers: {
    kind: 'counter',
    prometheus: 'take_overs_total',
    openTelemetry: 'oncekey.take_overs',
    unit: '{claim}',
    help: 'Unknown operations that were claimed again.',
    labels: ['route'],
  },
  replays: {
    kind: 'counter',
    prometheus: 'replays_total',
    openTelemetry: 'oncekey.replays',
    unit: '{request}',
    help: 'Retries that found a kept outcome, by where it was found and whether its body was kept.',
    labels: ['route', 'source', 'body'],
    known: [
      { source: 'store', body: 'kept' },
      { source: 'store', body: 'not-kept' },
      { source: 'cache', body: 'kept' },
      { source: 'cache', body: 'not-kept' },
    ],
  },
  replayAge: {
    kind: 'histogram',
    prometheus: 'replay_age_seconds',
    openTelemetry: 'oncekey.replay.age',
    unit: 's',
    help: 'How old an outcome was when it answered a retry.',
    labels: ['route'],
    buckets: AGE_BUCKETS,
  },
  completions: {
    kind: 'counter',
    prometheus: 'completions_total',
    openTelemetry: 'oncekey.completions',
    unit: '{operation}',
    help: 'Outcomes that were kept, by result and by the class of the HTTP status.',
    labels: ['route', 'result', 'status'],
    known: [
      { result: 'succeeded', status: '2xx' },
      { result: 'failed', status: '4xx' },
      { result: 'failed', status: '5xx' },
      { result: 'succeeded', status: 'none' },
      { result: 'failed', status: 'none' },
    ],
  },
  releases: {
    kind: 'counter',
    prometheus: 'releases_total',
    openTelemetry: 'oncekey.releases',
    unit: '{operation}',
    help: 'Claims that were given back, because nothing was done.',
    labels: ['route'],
  },
  handlerDuration: {
    kind: 'histogram',
    prometheus: 'handler_duration_seconds',
    openTelemetry: 'oncekey.handler.duration',
    unit: 's',
    help: 'From a claim to its kept outcome or its release.',
    labels: ['route'],
    buckets: RUN_BUCKETS,
  },
  waitDuration: {
    kind: 'histogram',
    prometheus: 'wait_duration_seconds',
    openTelemetry: 'oncekey.wait.duration',
    unit: 's',
    help: 'How long a concurrent duplicate waited for the first to end.',
    labels: ['route'],
    buckets: RUN_BUCKETS,
  },
  liveClaims: {
    kind: 'gauge',
    prometheus: 'live_claims',
    openTelemetry: 'oncekey.claims.live',
    unit: '{claim}',
    help: 'Claims of this process whose run has not ended.',
    labels: ['route'],
  },
  stuckClaims: {
    kind: 'gauge',
    prometheus: 'stuck_claims',
    openTelemetry: 'oncekey.claims.stuck',
    unit: '{claim}',
    help: 'Claims of this process whose run is past maxRun and has not ended.',
    labels: ['route'],
  },
  reconciliations: {
    kind: 'counter',
    prometheus: 'reconciliations_total',
    openTelemetry: 'oncekey.reconciliations',
    unit: '{question}',
    help: 'What onUnknown answered when it was asked about an unknown operation.',
    labels: ['route', 'answer'],
    known: [{ answer: 'outcome' }, { answer: 'rerun' }, { answer: 'reject' }, { answer: 'failed' }],
  },
  troubles: {
    kind: 'counter',
    prometheus: 'troubles_total',
    openTelemetry: 'oncekey.troubles',
    unit: '{event}',
    help: 'What went wrong with a claim or its outcome, by the name of the event.',
    labels: ['route', 'kind'],
    known: TROUBLES.map((kind) => ({ kind })),
  },
  rollbacks: {
    kind: 'counter',
    prometheus: 'rollbacks_total',
    openTelemetry: 'oncekey.rollbacks',
    unit: '{transaction}',
    help: 'Transactions that were rolled back.',
    labels: ['route', 'why'],
    known: [{ why: 'failed' }, { why: 'asked' }, { why: 'lost' }],
  },
  repeats: {
    kind: 'counter',
    prometheus: 'transaction_repeats_total',
    openTelemetry: 'oncekey.transaction_repeats',
    unit: '{transaction}',
    help: 'Transactions whose work was run again after a conflict in the database.',
    labels: ['route'],
  },
  storeDuration: {
    kind: 'histogram',
    prometheus: 'store_call_duration_seconds',
    openTelemetry: 'oncekey.store.call.duration',
    unit: 's',
    help: 'Calls of the store, those that failed included.',
    labels: ['step'],
    buckets: STORE_BUCKETS,
  },
  storeErrors: {
    kind: 'counter',
    prometheus: 'store_errors_total',
    openTelemetry: 'oncekey.store.errors',
    unit: '{call}',
    help: 'Calls of the store that failed or got no answer in time.',
    labels: ['step'],
    known: STEPS.map((step) => ({ step })),
  },
  storeWarnings: {
    kind: 'counter',
    prometheus: 'store_warnings_total',
    openTelemetry: 'oncekey.store.warnings',
    unit: '{warning}',
    help: 'Warnings of the store, and of its upkeep.',
    labels: [],
  },
  swept: {
    kind: 'counter',
    prometheus: 'swept_records_total',
    openTelemetry: 'oncekey.swept_records',
    unit: '{record}',
    help: 'Expired records that this process removed.',
    labels: [],
  },
  ...MESSAGE_INSTRUMENTS,
} as const satisfies Readonly<Record<string, Instrument>>

/** What an instrument is called inside. */
export type InstrumentName = keyof typeof INSTRUMENTS

/** Where measurements go. */
export interface Recorder {
  /** Adds to a counter or a gauge. */
  add(name: InstrumentName, labels: Readonly<Record<string, string>>, by?: number): void
  /** Notes one value of a histogram. */
  observe(name: InstrumentName, labels: Readonly<Record<string, string>>, value: number): void
}

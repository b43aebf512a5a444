import { z } from 'zod'
import { createEngine, type Engine } from './core/engine.js'
import { type EngineOptions, engineShape, resolveEngineOptions } from './core/engine-options.js'
import { createRun, type Run, valueOnUnknown } from './core/operation.js'
import { parseOptions } from './core/parse-options.js'
import { DEFAULT_POLICY, type Policy, type PolicyOptions, policyShape, resolvePolicy } from './core/policy.js'
import { memoryStore } from './stores/memory.js'

export type { Duration } from './contract/duration.js'
export * from './contract/errors.js'
export type { MaybePromise } from './contract/maybe-promise.js'
export type {
  ClaimRequest,
  ClaimResult,
  Completion,
  ExecuteStatement,
  IdempotencyStore,
  IsolationLevel,
  ListQuery,
  Outcome,
  RecordMeta,
  StatementResult,
  StatementValue,
  StoredRecord,
  TransactionEnd,
  TransactionResult,
  TransactionSettings,
} from './contract/store.js'
export type { Begun, Engine, Operation } from './core/engine.js'
export type { EngineOptions } from './core/engine-options.js'
export type {
  EventSubject,
  IdempotencyEvent,
  IdempotencyListener,
  OutcomeFacts,
  OutcomeReader,
  StoreStep,
} from './core/events.js'
export type { Answer, EndedTransaction, Execution } from './core/execution.js'
export type { Run, RunExecution, RunOptions, TransactionClient } from './core/operation.js'
export type {
  OnUnknown,
  Policy,
  PolicyOptions,
  Reconciliation,
  TransactionOptions,
  UnknownOperation,
  WhenBusy,
} from './core/policy.js'
export type { ReplayCacheOptions } from './core/replay-cache.js'
export type { TransactionWork, WorkEnd } from './core/transaction.js'
export type { CompressionOptions } from './stores/compression.js'
export { type MemoryStoreOptions, memoryStore } from './stores/memory.js'
export { type SealedStoreOptions, type SealingKey, sealedStore } from './stores/sealed.js'
export { type TieredStoreOptions, tieredStore } from './stores/tiered.js'

/** What `createIdempotency` takes: an engine, and how its operations are run where nothing else is said. */
export interface IdempotencyOptions extends EngineOptions, PolicyOptions<unknown> {}

/** An engine with its defaults, and `run` for plain functions. */
export interface Idempotency extends Engine {
  /** How operations are run where nothing else is said, checked and in milliseconds. */
  readonly policy: Policy
  readonly run: Run
}

const schema = z.strictObject({ ...engineShape, ...policyShape })

/**
 * Makes functions safe to retry: one effect and one answer for every scope and key.
 *
 * @throws {OptionsError} naming the option that is wrong, its value and what would be right, also when `atomic` is asked
 *   for and the store has no transactions.
 */
export function createIdempotency(options: IdempotencyOptions = {}): Idempotency {
  const parsed = parseOptions(schema, options, 'createIdempotency')
  const policy = resolvePolicy(parsed, DEFAULT_POLICY, valueOnUnknown(parsed.onUnknown))
  const engine = createEngine({ ...resolveEngineOptions(parsed), store: parsed.store ?? memoryStore() })
  engine.assertSupports(policy, 'createIdempotency')
  return { ...engine, policy, run: createRun(engine, policy) }
}

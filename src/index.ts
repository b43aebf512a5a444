export type { Duration } from './contract/duration.js'
export * from './contract/errors.js'
export type {
  ClaimRequest,
  ClaimResult,
  IdempotencyStore,
  Outcome,
  RecordMeta,
  StoredRecord,
} from './contract/store.js'

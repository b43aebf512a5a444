export {
  type ArmedFault,
  type Fault,
  type FaultProxy,
  type FaultProxyOptions,
  type FaultTrigger,
  startFaultProxy,
} from './fault-proxy.js'
export type { HttpConformanceTier } from './http-check.js'
export {
  checkHttpConformance,
  type HttpConformanceCase,
  type HttpConformanceChoice,
  type HttpConformanceCost,
  type HttpConformanceOptions,
  type HttpConformanceReport,
  type HttpConformanceResult,
  httpConformance,
  httpConformanceCost,
  TargetUnfitError,
} from './http-conformance.js'
export type { EffectsEvidence } from './http-effects.js'
export { formatHttpConformance } from './http-report.js'
export type {
  HttpTarget,
  HttpTargetBody,
  HttpTargetHeaders,
  HttpTargetOperation,
  HttpTargetOperationName,
} from './http-target.js'
export { type StoreContractCase, storeContract } from './store-contract.js'
export { transactionContract } from './transaction-contract.js'

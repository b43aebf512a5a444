export {
  type ArmedFault,
  type Fault,
  type FaultProxy,
  type FaultProxyOptions,
  type FaultTrigger,
  startFaultProxy,
} from './fault-proxy.js'
export { type StoreContractCase, storeContract } from './store-contract.js'
export { transactionContract } from './transaction-contract.js'

/**
 * The client of Confluent has the interface of KafkaJS for consumers, so that what consumes with one consumes with the other.
 */
export {
  type EachBatchPayload,
  eachBatch,
  eachMessage,
  type KafkaBatchOptions,
  type KafkaDelivery,
  type KafkaHeader,
  type KafkaMessage,
  type KafkaOptions,
  type RunConfig,
} from './kafkajs.js'

import { createServer, type RequestListener } from 'node:http'
import { startKafkaServer } from './kafka-server.js'
import { startNatsServer } from './nats-server.js'
import { startRabbitMqServer } from './rabbitmq-server.js'

/** A message broker that tests share. */
export type BrokerName = 'kafka' | 'rabbitmq' | 'nats'

interface RunningBroker {
  readonly url: string
  stop(): Promise<void>
}

const BROKERS: Readonly<Record<BrokerName, () => Promise<RunningBroker>>> = {
  kafka: () => givenOr(process.env.KAFKA_BROKERS, startKafkaServer),
  rabbitmq: () => givenOr(process.env.AMQP_URL, startRabbitMqServer),
  nats: () => givenOr(process.env.NATS_URL, startNatsServer),
}

async function givenOr(url: string | undefined, start: () => Promise<RunningBroker>): Promise<RunningBroker> {
  // A broker that somebody gave us is not ours to stop.
  return url === undefined ? start() : { url, stop: async () => {} }
}

/** Whether a name of a service is a broker's. */
export function isBroker(name: string): name is BrokerName {
  return name in BROKERS
}

/**
 * Starts a broker when somebody asks for it, by HTTP on the loopback interface: `GET /kafka` is answered with its address
 * once it is ready. The test run asks from its workers, so that a run of tests that need no broker starts none.
 */
export async function offerBrokers(): Promise<{ readonly at: string; stop(): Promise<void> }> {
  const started = new Map<BrokerName, Promise<RunningBroker>>()
  const start = (name: BrokerName): Promise<RunningBroker> => {
    const broker = started.get(name) ?? BROKERS[name]()
    started.set(name, broker)
    return broker
  }
  const answer: RequestListener = (request, response) => {
    const name = request.url?.slice(1) ?? ''
    const broker = isBroker(name) ? start(name) : Promise.reject(new Error(`There is no broker ${name}`))
    broker.then(
      ({ url }) => response.end(url),
      (error: unknown) => response.writeHead(500).end(String(error)),
    )
  }
  const server = createServer(answer)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('The server has no port')
  return {
    at: `http://127.0.0.1:${address.port}`,
    async stop() {
      server.close()
      server.closeAllConnections()
      // What did not start has been said to whoever asked for it.
      const brokers = await Promise.allSettled(started.values())
      for (const broker of brokers) if (broker.status === 'fulfilled') await broker.value.stop()
    },
  }
}

/**
 * Asks for a broker, and waits until it is ready.
 *
 * @param at where brokers are offered.
 * @returns its address.
 * @throws when it does not start, with the reason.
 */
export async function askForBroker(at: string, name: BrokerName): Promise<string> {
  const response = await fetch(`${at}/${name}`, { headers: { connection: 'close' } })
  const text = await response.text()
  if (!response.ok) throw new Error(`${name} could not be started: ${text}`)
  return text
}

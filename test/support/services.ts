import { spawnSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { beforeAll, describe, inject } from 'vitest'
import { askForBroker, type BrokerName, isBroker, offerBrokers } from './brokers.js'
import { findChromium } from './chromium.js'
import { hasDocker } from './container.js'
import { downloadKafka, findJava, findKafka, findMaven } from './kafka-server.js'
import { findNats } from './nats-server.js'
import { findPgBouncer } from './pgbouncer.js'
import { findPostgres, startPostgresServer } from './postgres-server.js'
import { findProgram } from './program.js'
import { findPrometheus } from './prometheus-server.js'
import { findRabbitMq } from './rabbitmq-server.js'
import { findRedis, startRedisServer } from './redis-server.js'

/** The services that tests talk to, and the programs of the machine that they run. */
export type ServiceName =
  | 'redis'
  | 'redis-topologies'
  | 'postgres'
  | 'pgbouncer'
  | 'curl'
  | 'chromium'
  | 'prometheus'
  | BrokerName

/** Which services there are, and where the shared ones are. Tests share a server where they need nothing of it but room. */
export interface Services {
  readonly available: readonly ServiceName[]
  readonly redisUrl: string
  readonly postgresUrl: string
  /** Where brokers are started on demand: `describeWith` asks there for those that its tests need. */
  readonly brokersAt: string
}

declare module 'vitest' {
  interface ProvidedContext {
    readonly services: Services
  }
}

/** How long a broker may take to start beside other work. */
const BROKER_STARTS_WITHIN_MS = 180_000

/**
 * A group of tests that needs services. It is skipped, by their names, where they cannot be had. The brokers among them are
 * started before its first test, if no group has needed them before: `brokerUrl` says where they are.
 */
export function describeWith(needed: readonly ServiceName[], name: string, define: () => void): void {
  const { available, brokersAt } = inject('services')
  const missing = needed.filter((service) => !available.includes(service))
  const startBrokers = async (): Promise<void> => {
    for (const broker of needed.filter(isBroker))
      brokerUrls.set(broker, await askForBroker(brokersAt, broker))
  }
  describe.runIf(missing.length === 0)(
    missing.length === 0 ? name : `${name} (no ${missing.join(', ')})`,
    () => {
      if (needed.some(isBroker)) beforeAll(startBrokers, BROKER_STARTS_WITHIN_MS)
      define()
    },
  )
}

const brokerUrls = new Map<BrokerName, string>()

/** Where a broker is, for the hooks and tests of a group that needs it: of Kafka, hosts and ports with commas between. */
export function brokerUrl(name: BrokerName): string {
  const url = brokerUrls.get(name)
  if (url === undefined) throw new Error(`No group of tests that is running needs ${name}`)
  return url
}

interface Recipe {
  readonly isThere: () => boolean
  /** The packages of a Debian system that it takes, without those that are there in another way. */
  readonly debianPackages: () => readonly string[]
  /** Fetches what no package has. */
  readonly download?: () => void
  readonly remedy: string
}

const RECIPES: Readonly<Record<ServiceName, Recipe>> = {
  redis: {
    isThere: () => process.env.REDIS_URL !== undefined || findRedis() !== undefined || hasDocker(),
    debianPackages: () => ['redis-server'],
    remedy: 'set REDIS_URL, or install Docker or redis-server',
  },
  // Replicas, Sentinels and clusters: servers that find each other by their ports, so programs of this machine.
  'redis-topologies': {
    isThere: () => findRedis() !== undefined,
    debianPackages: () => ['redis-server'],
    remedy: 'install redis-server',
  },
  postgres: {
    isThere: () => process.env.DATABASE_URL !== undefined || findPostgres() !== undefined || hasDocker(),
    debianPackages: () => ['postgresql'],
    remedy: 'set DATABASE_URL, or install Docker or Postgres',
  },
  pgbouncer: {
    isThere: () => findPgBouncer() !== undefined,
    debianPackages: () => ['pgbouncer'],
    remedy: 'install pgbouncer',
  },
  curl: {
    isThere: () => findProgram('curl') !== undefined,
    debianPackages: () => ['curl'],
    remedy: 'install curl',
  },
  chromium: {
    isThere: () => findChromium() !== undefined,
    debianPackages: () => ['chromium'],
    remedy: 'install chromium',
  },
  prometheus: {
    isThere: () => findPrometheus() !== undefined,
    debianPackages: () => ['prometheus'],
    remedy: 'install prometheus with promtool',
  },
  kafka: {
    isThere: () => process.env.KAFKA_BROKERS !== undefined || findKafka() !== undefined || hasDocker(),
    debianPackages: () => [
      ...(findJava() === undefined ? ['default-jre-headless'] : []),
      ...(findMaven() === undefined ? ['maven'] : []),
    ],
    download: downloadKafka,
    remedy: 'set KAFKA_BROKERS, or install Docker, or Java 17 and Maven',
  },
  rabbitmq: {
    isThere: () => process.env.AMQP_URL !== undefined || findRabbitMq() !== undefined || hasDocker(),
    debianPackages: () => ['rabbitmq-server'],
    remedy: 'set AMQP_URL, or install Docker or rabbitmq-server',
  },
  nats: {
    isThere: () => process.env.NATS_URL !== undefined || findNats() !== undefined || hasDocker(),
    debianPackages: () => ['nats-server'],
    remedy: 'set NATS_URL, or install Docker or nats-server',
  },
}

/**
 * Finds every service, installs what is missing where that is possible, and starts the shared servers. Brokers wait until
 * tests need them: a JVM and an Erlang machine are too much for a run of a single file.
 *
 * @throws when a service that `REQUIRE_SERVICES` (names with commas between) lists cannot be had.
 */
export async function startServices(): Promise<Services & { stop(): Promise<void> }> {
  const names = Object.keys(RECIPES) as ServiceName[]
  const missing = names.filter((name) => !RECIPES[name].isThere())
  const packages = new Set(missing.flatMap((name) => RECIPES[name].debianPackages()))
  if (packages.size > 0) install([...packages])
  for (const name of missing) RECIPES[name].download?.()
  const available = names.filter((name) => RECIPES[name].isThere())
  for (const name of names.filter((one) => !available.includes(one))) report(name)

  const redis = available.includes('redis')
    ? await sharedServer(process.env.REDIS_URL, startRedisServer)
    : undefined
  const postgres = available.includes('postgres')
    ? await sharedServer(process.env.DATABASE_URL, startPostgresServer)
    : undefined
  const brokers = await offerBrokers()
  return {
    available,
    redisUrl: redis?.url ?? '',
    postgresUrl: postgres?.url ?? '',
    brokersAt: brokers.at,
    async stop() {
      await brokers.stop()
      await redis?.stop()
      await postgres?.stop()
    },
  }
}

interface SharedServer {
  readonly url: string
  stop(): Promise<void>
}

async function sharedServer(
  given: string | undefined,
  start: () => Promise<SharedServer>,
): Promise<SharedServer> {
  // A server that somebody gave us is not ours to stop.
  return given === undefined ? start() : { url: given, stop: async () => {} }
}

function report(name: ServiceName): void {
  const message = `Tests that need ${name} cannot run here: ${RECIPES[name].remedy}.`
  const required = (process.env.REQUIRE_SERVICES ?? '').split(',').map((one) => one.trim())
  if (required.includes(name)) throw new Error(message)
  console.warn(`${message} They are skipped.`)
}

const POLICY = '/usr/sbin/policy-rc.d'

/** Installs Debian packages, without letting them start servers of their own. */
function install(packages: readonly string[]): void {
  const isRoot = process.getuid?.() === 0
  if (!isRoot || !existsSync('/usr/bin/apt-get')) return
  console.log(`Installing ${packages.join(' and ')} from the packages of this system, for the tests.`)
  const hadPolicy = existsSync(POLICY)
  if (!hadPolicy) writeFileSync(POLICY, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
  try {
    const apt = (...args: string[]) =>
      spawnSync('apt-get', ['-q', '-y', ...args], {
        env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
        encoding: 'utf8',
      })
    apt('update')
    // One by one: that one cannot be had must not keep the others away.
    for (const name of packages) {
      const { status, stderr } = apt('install', '--no-install-recommends', name)
      if (status !== 0) console.warn(`${name} could not be installed: ${stderr.trim()}`)
    }
  } finally {
    if (!hadPolicy) rmSync(POLICY, { force: true })
  }
}

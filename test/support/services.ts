import { spawnSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { describe, inject } from 'vitest'
import { hasDocker } from './container.js'
import { findPgBouncer } from './pgbouncer.js'
import { findPostgres, startPostgresServer } from './postgres-server.js'
import { findProgram } from './program.js'
import { findRedis, startRedisServer } from './redis-server.js'

/** The services that tests talk to, and the programs of the machine that they run. */
export type ServiceName = 'redis' | 'redis-topologies' | 'postgres' | 'pgbouncer' | 'curl'

/** Which services there are, and where the shared ones are. Tests share a server where they need nothing of it but room. */
export interface Services {
  readonly available: readonly ServiceName[]
  readonly redisUrl: string
  readonly postgresUrl: string
}

declare module 'vitest' {
  interface ProvidedContext {
    readonly services: Services
  }
}

/** A group of tests that needs services. It is skipped, by their names, where they cannot be had. */
export function describeWith(needed: readonly ServiceName[], name: string, define: () => void): void {
  const { available } = inject('services')
  const missing = needed.filter((service) => !available.includes(service))
  describe.runIf(missing.length === 0)(
    missing.length === 0 ? name : `${name} (no ${missing.join(', ')})`,
    define,
  )
}

interface Recipe {
  readonly isThere: () => boolean
  readonly debianPackage: string
  readonly remedy: string
}

const RECIPES: Readonly<Record<ServiceName, Recipe>> = {
  redis: {
    isThere: () => process.env.REDIS_URL !== undefined || findRedis() !== undefined || hasDocker(),
    debianPackage: 'redis-server',
    remedy: 'set REDIS_URL, or install Docker or redis-server',
  },
  // Replicas, Sentinels and clusters: servers that find each other by their ports, so programs of this machine.
  'redis-topologies': {
    isThere: () => findRedis() !== undefined,
    debianPackage: 'redis-server',
    remedy: 'install redis-server',
  },
  postgres: {
    isThere: () => process.env.DATABASE_URL !== undefined || findPostgres() !== undefined || hasDocker(),
    debianPackage: 'postgresql',
    remedy: 'set DATABASE_URL, or install Docker or Postgres',
  },
  pgbouncer: {
    isThere: () => findPgBouncer() !== undefined,
    debianPackage: 'pgbouncer',
    remedy: 'install pgbouncer',
  },
  curl: {
    isThere: () => findProgram('curl') !== undefined,
    debianPackage: 'curl',
    remedy: 'install curl',
  },
}

/**
 * Finds every service, installs what is missing where that is possible, and starts the shared servers.
 *
 * @throws when a service that `REQUIRE_SERVICES` (names with commas between) lists cannot be had.
 */
export async function startServices(): Promise<Services & { stop(): Promise<void> }> {
  const names = Object.keys(RECIPES) as ServiceName[]
  const missing = names.filter((name) => !RECIPES[name].isThere())
  if (missing.length > 0) install([...new Set(missing.map((name) => RECIPES[name].debianPackage))])
  const available = names.filter((name) => RECIPES[name].isThere())
  for (const name of names.filter((one) => !available.includes(one))) report(name)

  const redis = available.includes('redis')
    ? await sharedServer(process.env.REDIS_URL, startRedisServer)
    : undefined
  const postgres = available.includes('postgres')
    ? await sharedServer(process.env.DATABASE_URL, startPostgresServer)
    : undefined
  return {
    available,
    redisUrl: redis?.url ?? '',
    postgresUrl: postgres?.url ?? '',
    async stop() {
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

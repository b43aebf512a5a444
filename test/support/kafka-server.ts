import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Kafka, logLevel } from 'kafkajs'
import { startContainer } from './container.js'
import { onFreePorts } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** A Kafka broker that belongs to this test run. */
export interface KafkaServer extends Omit<RunningProgram, 'pid'> {
  /** Its address, as clients take it: host and port. */
  readonly url: string
  readonly port: number
  /** Kills it, and starts it again with what it has written so far. */
  crash(): Promise<void>
}

const KAFKA_VERSION = '4.4.0'
/** The same log4j that Kafka brings, made to write what Kafka says through slf4j. */
const LOG4J_VERSION = '2.25.5'
const OLDEST_JAVA = 17

/** The broker as it is on Maven Central. There is no shell script and no tool in it: the jars are all that it needs. */
const POM = `<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>oncekey</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>${KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>${LOG4J_VERSION}</version></dependency>
  </dependencies>
</project>
`

/** Warnings and errors, on the standard output. */
const LOGGING = `rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %p %c{1} %m%n%throwable{5}
`

/** Where the jars are kept. `npm ci` empties `node_modules`, so it is not there. */
const JARS = join(
  process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'),
  'oncekey',
  `kafka-${KAFKA_VERSION}-log4j-${LOG4J_VERSION}`,
)

/** The Java that runs Kafka, or `undefined` where there is none, or an older one than Kafka needs. */
export function findJava(): string | undefined {
  const java = findProgram('java')
  if (java === undefined) return undefined
  const version = /version "(\d+)/.exec(spawnSync(java, ['-version'], { encoding: 'utf8' }).stderr)?.[1]
  return Number(version) >= OLDEST_JAVA ? java : undefined
}

/** The program that fetches Kafka. */
export function findMaven(): string | undefined {
  return findProgram('mvn')
}

/** The Java to run Kafka with, or `undefined` where that or Kafka's jars are missing. */
export function findKafka(): string | undefined {
  return existsSync(JARS) ? findJava() : undefined
}

/** Fetches Kafka's jars from Maven Central, once for this machine: 43 MB. */
export function downloadKafka(): void {
  const maven = findMaven()
  if (existsSync(JARS) || maven === undefined || findJava() === undefined) return
  console.log(`Fetching Apache Kafka ${KAFKA_VERSION} from Maven Central, for the tests.`)
  mkdirSync(dirname(JARS), { recursive: true })
  const folder = mkdtempSync(`${JARS}-`)
  const pom = join(folder, 'pom.xml')
  writeFileSync(pom, POM)
  const { status, stdout } = spawnSync(
    maven,
    [
      '-B',
      '-q',
      '-f',
      pom,
      'dependency:copy-dependencies',
      '-DincludeScope=runtime',
      '-DoutputDirectory=jars',
    ],
    { encoding: 'utf8' },
  )
  if (status !== 0) console.warn(`Kafka could not be fetched: ${stdout.trim()}`)
  // Whole or not at all, also where two test runs fetch it at a time.
  else if (!existsSync(JARS)) renameSync(join(folder, 'jars'), JARS)
  rmSync(folder, { recursive: true, force: true })
}

/**
 * Starts Kafka as one node, broker and controller, on free ports of the loopback interface. Topics are made by hand.
 *
 * After a crash the controller waits for the session of the broker that it knew, 9 seconds: a test that crashes it may set
 * `broker.session.timeout.ms`.
 */
export function startKafkaServer(
  options: { readonly settings?: Readonly<Record<string, string>> } = {},
): Promise<KafkaServer> {
  const java = findKafka()
  return onFreePorts(2, (port, controllerPort) => {
    const start = java === undefined ? startKafkaContainer : startKafkaProgram.bind(undefined, java)
    return start(port, (host) => ({ ...settingsFor(host, port, controllerPort), ...options.settings }))
  })
}

type SettingsOn = (host: string) => Readonly<Record<string, string>>

async function startKafkaProgram(java: string, port: number, settingsOn: SettingsOn): Promise<KafkaServer> {
  const url = `127.0.0.1:${port}`
  const folder = mkdtempSync(join(tmpdir(), 'oncekey-kafka-'))
  const config = join(folder, 'server.properties')
  const settings = { ...settingsOn('127.0.0.1'), 'log.dirs': join(folder, 'data') }
  writeFileSync(config, propertiesOf(settings))
  const logging = join(folder, 'log4j2.properties')
  writeFileSync(logging, LOGGING)
  const javaArgs = [
    '-Xmx512m',
    // A broker for tests starts often and lives briefly.
    '-XX:+UseSerialGC',
    '-XX:TieredStopAtLevel=1',
    `-Dlog4j2.configurationFile=${logging}`,
    '-cp',
    join(JARS, '*'),
  ]
  execFileSync(java, [...javaArgs, 'kafka.tools.StorageTool', 'format', '-t', CLUSTER_ID, '-c', config], {
    stdio: 'pipe',
  })
  const launch = (): Promise<RunningProgram> =>
    startProgram({
      file: java,
      args: [...javaArgs, 'kafka.Kafka', config],
      cwd: folder,
      isReady: () => hasBroker(url),
      readyWithinMs: 120_000,
    })
  const remove = (): void => rmSync(folder, { recursive: true, force: true })
  let program = await launch().catch((error) => {
    remove()
    throw error
  })
  return {
    port,
    url,
    pause: () => program.pause(),
    resume: () => program.resume(),
    async crash() {
      await program.stop('SIGKILL')
      program = await launch()
    },
    async stop(signal) {
      await program.stop(signal)
      remove()
    },
  }
}

async function startKafkaContainer(port: number, settingsOn: SettingsOn): Promise<KafkaServer> {
  const url = `127.0.0.1:${port}`
  const container = await startContainer({
    image: `apache/kafka:${KAFKA_VERSION}`,
    port,
    command: ['/etc/kafka/docker/run'],
    environment: Object.fromEntries(
      Object.entries(settingsOn('0.0.0.0')).map(([name, value]) => [
        `KAFKA_${name.toUpperCase().replaceAll('.', '_')}`,
        value,
      ]),
    ),
    readyLog: [/Kafka Server started/, 1],
  })
  return { ...container, crash: () => container.crash(() => hasBroker(url)), port, url }
}

/** Any will do: no two nodes meet. */
const CLUSTER_ID = 'b25jZWtleS1pbi10ZXN0cw'

function settingsFor(host: string, port: number, controllerPort: number): Readonly<Record<string, string>> {
  return {
    'process.roles': 'broker,controller',
    'node.id': '1',
    'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
    'controller.listener.names': 'CONTROLLER',
    'listener.security.protocol.map': 'CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT',
    listeners: `PLAINTEXT://${host}:${port},CONTROLLER://${host}:${controllerPort}`,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${port}`,
    // A topic that a test has misspelt is an error, and no empty topic.
    'auto.create.topics.enable': 'false',
    // The first member of a group gets its partitions at once.
    'group.initial.rebalance.delay.ms': '0',
    // Tests of a consumer that has died need not wait for the 6 seconds that are the least otherwise.
    'group.min.session.timeout.ms': '1000',
    'offsets.topic.num.partitions': '1',
    'offsets.topic.replication.factor': '1',
    'transaction.state.log.num.partitions': '1',
    'transaction.state.log.replication.factor': '1',
    'transaction.state.log.min.isr': '1',
    'share.coordinator.state.topic.num.partitions': '1',
    'share.coordinator.state.topic.replication.factor': '1',
    'share.coordinator.state.topic.min.isr': '1',
  }
}

function propertiesOf(settings: Readonly<Record<string, string>>): string {
  return Object.entries(settings)
    .map(([name, value]) => `${name}=${value}\n`)
    .join('')
}

/** Whether the broker of this address has registered itself with its controller, and takes requests. */
async function hasBroker(url: string): Promise<boolean> {
  const admin = new Kafka({
    brokers: [url],
    connectionTimeout: 1000,
    logLevel: logLevel.NOTHING,
    retry: { retries: 0 },
  }).admin()
  try {
    await admin.connect()
    const { brokers } = await admin.describeCluster()
    return brokers.length > 0
  } finally {
    await admin.disconnect()
  }
}

import { execFileSync, spawnSync } from 'node:child_process'
import { GenericContainer, Wait } from 'testcontainers'
import { becomesReady, type RunningProgram } from './program.js'

/** Whether this machine can run containers. */
export function hasDocker(): boolean {
  return spawnSync('docker', ['info'], { stdio: 'ignore', timeout: 10_000 }).status === 0
}

/** A server in a container. */
export interface RunningContainer extends Omit<RunningProgram, 'pid'> {
  /** Ends it without any warning, and starts it again with what it has written so far. */
  crash(isReady: () => Promise<boolean>): Promise<void>
}

/** Starts a server in a container, on a port that is the same inside and outside. */
export async function startContainer(options: {
  readonly image: string
  readonly port: number
  readonly command: readonly string[]
  readonly environment?: Readonly<Record<string, string>>
  /** What it writes when it is ready, and how often it does so before it is. */
  readonly readyLog: readonly [message: RegExp, times: number]
}): Promise<RunningContainer> {
  const { image, port, command, environment = {}, readyLog } = options
  const container = await new GenericContainer(image)
    .withExposedPorts({ container: port, host: port })
    .withCommand([...command])
    .withEnvironment({ ...environment })
    .withWaitStrategy(Wait.forLogMessage(...readyLog))
    .start()
  const docker = (action: string): void => {
    execFileSync('docker', [action, container.getId()], { stdio: 'ignore' })
  }
  return {
    pause: () => docker('pause'),
    resume: () => docker('unpause'),
    async crash(isReady) {
      docker('kill')
      docker('start')
      if (!(await becomesReady(isReady))) throw new Error(`${image} did not start again`)
    },
    async stop() {
      await container.stop()
    },
  }
}

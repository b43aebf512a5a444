import { execFileSync, spawnSync } from 'node:child_process'
import { GenericContainer, Wait } from 'testcontainers'
import type { RunningProgram } from './program.js'

/** Whether this machine can run containers. */
export function hasDocker(): boolean {
  return spawnSync('docker', ['info'], { stdio: 'ignore', timeout: 10_000 }).status === 0
}

/** Starts a server in a container, on a port that is the same inside and outside. */
export async function startContainer(options: {
  readonly image: string
  readonly port: number
  readonly command: readonly string[]
  readonly environment?: Readonly<Record<string, string>>
  /** What it writes when it is ready, and how often it does so before it is. */
  readonly readyLog: readonly [message: RegExp, times: number]
}): Promise<Omit<RunningProgram, 'pid'>> {
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
    async stop() {
      await container.stop()
    },
  }
}

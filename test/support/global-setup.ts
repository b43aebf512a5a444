import type { TestProject } from 'vitest/node'
import { startServices } from './services.js'

/** Starts what the tests share, once for the whole run. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { stop, ...services } = await startServices()
  project.provide('services', services)
  return stop
}

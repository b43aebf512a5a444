import { benchProcess } from './process-growth.js'
import { benchTable } from './table-growth.js'

/** Measures whether anything becomes dearer as there is more of it. */
export async function benchGrowth(): Promise<void> {
  await benchTable()
  await benchProcess()
}

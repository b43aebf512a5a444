import { describe, expect, it } from 'vitest'
import { deadlines } from '../../src/core/deadlines.js'

describe('deadlines', () => {
  it('come due in the order of their time, not before it, whatever their delays', async () => {
    const startedAt = performance.now()
    const due: number[] = []
    await Promise.all(
      [30, 5, 20, 5, 10].map(
        (delayMs) =>
          new Promise<void>((resolve) => {
            deadlines.after(delayMs, () => {
              due.push(delayMs)
              expect(performance.now() - startedAt).toBeGreaterThanOrEqual(delayMs)
              resolve()
            })
          }),
      ),
    )
    expect(due).toEqual([5, 5, 10, 20, 30])
  })

  it('do not come due once they are cancelled', async () => {
    let isDue = false
    deadlines
      .after(5, () => {
        isDue = true
      })
      .cancel()
    await new Promise<void>((resolve) => deadlines.after(20, resolve))
    expect(isDue).toBe(false)
  })
})

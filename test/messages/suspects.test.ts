import { describe, expect, it } from 'vitest'
import { createSuspects } from '../../src/messages/suspects.js'

describe('createSuspects', () => {
  it('suspects a partition until enough of its messages were new', () => {
    const partition = createSuspects(2).at('orders/0', 5n)
    const seen: boolean[] = []
    for (const [offset, processed] of [
      [5n, 0],
      [6n, 1],
      [7n, 0],
      [8n, 1],
      [9n, 0],
    ] as const) {
      seen.push(partition.isSuspect)
      partition.passed(offset, processed)
    }
    expect(seen).toEqual([true, true, true, true, false])
  })

  it('keeps partitions apart, and remembers them', () => {
    const suspects = createSuspects(1)
    suspects.at('orders/0', 0n).passed(0n, 1)
    expect(suspects.at('orders/0', 1n).isSuspect).toBe(false)
    expect(suspects.at('orders/1', 1n).isSuspect).toBe(true)
  })

  it('suspects a partition again whose messages come again, and not one that is tried again at the same place', () => {
    const suspects = createSuspects(1)
    suspects.at('orders/0', 7n).passed(7n, 1)
    expect(suspects.at('orders/0', 8n).isSuspect).toBe(false)
    expect(suspects.at('orders/0', 8n).isSuspect).toBe(false)
    expect(suspects.at('orders/0', 7n).isSuspect).toBe(true)
  })

  it('suspects everything after an assignment, also what is being read', () => {
    const suspects = createSuspects(1)
    const partition = suspects.at('orders/0', 0n)
    partition.passed(0n, 1)
    suspects.startOver()
    expect(partition.isSuspect).toBe(true)
    expect(suspects.at('orders/0', 1n).isSuspect).toBe(true)
  })
})

import { describe, expect, it } from 'vitest'
import { createWaitingRoom } from '../../src/core/waiting-room.js'

describe('the waiting room', () => {
  it('counts all who wait, and none of those whom it woke', async () => {
    const room = createWaitingRoom(undefined)
    const ofOne = [1, 2, 3].map(() => room.wait('one', { maxMs: 60_000, looks: undefined }))
    const ofOther = room.wait('other', { maxMs: 60_000, looks: undefined })
    expect(room.size).toBe(4)
    room.wake('one')
    expect(room.size).toBe(1)
    await Promise.all(ofOne)
    room.wake('other')
    await ofOther
    expect(room.size).toBe(0)
  })

  it('ends its watch when somebody else has woken the room', async () => {
    let watched: AbortSignal | undefined
    const room = createWaitingRoom((_, signal) => {
      watched = signal
      return new Promise(() => {})
    })
    const waiting = room.wait('one', { maxMs: 60_000, looks: 0 })
    expect(watched?.aborted).toBe(false)
    room.wake('one')
    await waiting
    expect(watched?.aborted).toBe(true)
  })
})

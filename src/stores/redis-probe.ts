import { randomBytes, randomUUID } from 'node:crypto'
import { isAboutSlots, type Send } from './redis-batch.js'
import { PROBE, READ_PROBE } from './redis-scripts.js'

/**
 * What became of a command over several keys: `safe` when it reached each of them where a command of its own finds it,
 * `lost` when it did not, `refused` when the server takes no such command, or not from this user.
 */
export type ProbeResult = 'safe' | 'lost' | 'refused'

/** More than ever share a command: a server that has a twentieth of the keys goes unnoticed twice in a million times. */
const PROBE_KEYS = 256

/** How long the server keeps what nobody reads. Longer than a process that is busy at its start takes to read it. */
const PROBE_TTL_MS = 10_000

/**
 * Tries whether steps may share a command, in two round trips: writes keys in one command, and reads each in one of its
 * own. A proxy that routes by the first key of a command carries out the first without a word, and writes many of the keys
 * on servers where no command of their own looks for them.
 *
 * @throws what kept it from being tried.
 */
export async function probeSharing(send: Send, prefix: string): Promise<ProbeResult> {
  const value = randomUUID()
  // Of any number of servers, each key is as likely on each as that of a record. None has the form of one in a list.
  const keys = Array.from(
    { length: PROBE_KEYS },
    () => `${prefix}${randomBytes(32).toString('base64url')}:probe`,
  )
  try {
    await send('eval', [PROBE, keys.length, ...keys, value, PROBE_TTL_MS])
    const found = await Promise.all(keys.map((key) => send('eval', [READ_PROBE, 1, key])))
    return found.every((text) => String(text) === value) ? 'safe' : 'lost'
  } catch (error) {
    if (isRefusal(error)) return 'refused'
    throw error
  }
}

/** Whether the server will say the same whenever it is asked, as long as nobody sets it up in another way. */
function isRefusal(error: unknown): boolean {
  if (isAboutSlots(error)) return true
  // What an ACL forbids a script is said without the code.
  return error instanceof Error && /\bNOPERM\b|\bACL failure\b|\bunknown command\b/i.test(error.message)
}

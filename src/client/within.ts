/** Timers count to this, and with a longer delay they would be over at once. */
const MAX_TIMER_MS = 0x7fff_ffff

/**
 * What `work` gives, unless `outer` aborts or the time is up before: then it rejects with the reason, and the signal
 * that `work` was given aborts with it. Once `work` has ended, that signal follows `outer` alone.
 */
export async function within<T>(
  ms: number,
  reason: () => unknown,
  outer: AbortSignal | null | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  outer?.throwIfAborted()
  const limit = new AbortController()
  const timer = setTimeout(() => limit.abort(reason()), Math.min(ms, MAX_TIMER_MS))
  const signal = outer ? AbortSignal.any([outer, limit.signal]) : limit.signal
  let stop = (): void => {}
  const stopped = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason)
  })
  signal.addEventListener('abort', stop)
  try {
    return await Promise.race([work(signal), stopped])
  } finally {
    clearTimeout(timer)
    // A signal that somebody listens to is never collected.
    signal.removeEventListener('abort', stop)
  }
}

/** Waits, unless `signal` aborts first. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return within(ms, Object, signal, () => new Promise<never>(() => {})).catch(() => {})
}

import { type Html, html } from './html.js'

/** A length of time as people say it: `3 min`. */
export function shownDuration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 120) return `${seconds} s`
  if (seconds < 120 * 60) return `${Math.round(seconds / 60)} min`
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`
  return `${Math.round(seconds / 86_400)} days`
}

/** A point in time, and how long ago it was. */
export function shownTime(epochMs: number, now = Date.now()): Html {
  const date = new Date(epochMs)
  // What is in a store was written by some process with some clock.
  if (Number.isNaN(date.getTime())) return html`at an unknown time`
  const iso = date.toISOString()
  return html`<time datetime="${iso}">${iso.slice(0, 19).replace('T', ' ')} UTC</time> <span class="quiet">(${shownDuration(now - epochMs)} ago)</span>`
}

/** How long ago, with the time itself for whoever asks. */
export function shownAge(epochMs: number, now = Date.now()): Html {
  const date = new Date(epochMs)
  if (Number.isNaN(date.getTime())) return html`unknown`
  return html`<time datetime="${date.toISOString()}" title="${date.toISOString()}">${shownDuration(now - epochMs)} ago</time>`
}

/** A number with its thousands apart. */
export function shownCount(count: number): string {
  return count.toLocaleString('en')
}

/** A size in bytes as people say it. */
export function shownBytes(bytes: number): string {
  if (bytes === 1) return '1 byte'
  if (bytes < 10_000) return `${bytes} bytes`
  return bytes < 10_000_000 ? `${Math.round(bytes / 1024)} KiB` : `${Math.round(bytes / 1_048_576)} MiB`
}

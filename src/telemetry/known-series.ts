import { INSTRUMENTS, type Instrument, type InstrumentName, type Recorder } from './instruments.js'

type Labels = Readonly<Record<string, string>>

const COUNTED = Object.entries<Instrument>(INSTRUMENTS)
  .filter(([, { kind }]) => kind !== 'histogram')
  .map(([name, { labels, known = [{}] }]) => ({ name: name as InstrumentName, labels, known }))

/**
 * Begins, at 0, whatever is counted of a route, or of a topic of a consumer. Prometheus sees what a counter rises by from
 * one value to the next: of one that appears at 1, it does not see that it was 0.
 */
export function beginSeries(recorder: Recorder, measured: Labels): void {
  const names = Object.keys(measured)
  for (const { name, labels, known } of COUNTED)
    if (names.every((one) => labels.includes(one)))
      for (const rest of known) recorder.add(name, { ...measured, ...rest }, 0)
}

/** Begins, at 0, what is counted of neither a route nor a topic. */
export function beginStoreSeries(recorder: Recorder): void {
  for (const { step } of INSTRUMENTS.storeErrors.known) recorder.add('storeErrors', { step }, 0)
}

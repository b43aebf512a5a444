/** The part of `request.idempotency`, or of the execution of a `run()`, that names downstream operations. */
export interface KeyDeriver {
  /** A key that is the same in every run of the operation, and another for every label; `undefined` where there is none. */
  deriveKey(label: string): string | undefined
}

/**
 * The key of a downstream call, for its `idempotency` option: every run of the incoming operation sends the same one. Where
 * the incoming request has no key, it holds for this request only; where there is none at all, the call makes its own.
 *
 * @param label names the call within the operation: calls that are not the same need different labels.
 */
export function deriveFrom(incoming: KeyDeriver, label: string): { readonly key: string | undefined } {
  return { key: incoming.deriveKey(label) }
}

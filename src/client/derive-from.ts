/** The part of `request.idempotency`, or of an `execution`, that names downstream operations. */
export interface KeyDeriver {
  /** The key of the incoming operation; `undefined` where it has none. */
  readonly key: string | undefined
  /** A key that is the same on every run of the operation, and differs per label. */
  deriveKey(label: string): string | undefined
}

/**
 * The key of a downstream call, for its `idempotency` option: every run of the incoming operation sends the same one.
 * An incoming request without a key gives none, and the call makes its own.
 *
 * @param label names the call within the operation: calls that are not the same need different labels.
 */
export function deriveFrom(incoming: KeyDeriver, label: string): { readonly key: string | undefined } {
  return { key: incoming.key && incoming.deriveKey(label) }
}

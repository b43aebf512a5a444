/** What may be there at once: whoever has it in this process need not make anybody wait for it. */
export type MaybePromise<T> = T | Promise<T>

/** Whether there is something to wait for. Promises of other libraries are promises too. */
export function isPromise<T>(value: MaybePromise<T>): value is Promise<T> {
  return (
    value instanceof Promise ||
    (typeof value === 'object' &&
      value !== null &&
      'then' in value &&
      typeof (value as { readonly then: unknown }).then === 'function')
  )
}

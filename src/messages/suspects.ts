/**
 * Remembers which partitions have not shown yet that their next messages can be lived through. A process that dies over a
 * message leaves it to another one, which meets it among the first that nobody has processed.
 */
export interface Suspects {
  /** Goes on with a partition, at a message. One that was passed before makes the partition suspect again. */
  at(partition: string, offset: bigint): WatchedPartition
  /** Partitions were assigned anew: somebody else may have had them meanwhile. */
  startOver(): void
}

/** A partition that is being read. */
export interface WatchedPartition {
  /** Whether its next message may have been the end of an earlier process. */
  readonly isSuspect: boolean
  /** Everything up to `offset` has ended, and so many messages of it were new. */
  passed(offset: bigint, processed: number): void
}

/**
 * Makes the memory of a consumer.
 *
 * @param enough how many new messages have to be processed before a partition is trusted: as many as a process may have had
 *   in hand together when it died.
 */
export function createSuspects(enough: number): Suspects {
  const partitions = new Map<string, { newest: bigint; processed: number }>()
  return {
    at(partition, offset) {
      const known = partitions.get(partition)
      if (known === undefined || offset <= known.newest)
        partitions.set(partition, { newest: -1n, processed: 0 })
      return {
        // It may have been assigned anew in the middle.
        get isSuspect() {
          return (partitions.get(partition)?.processed ?? 0) < enough
        },
        passed(newest, processed) {
          const before = partitions.get(partition)?.processed ?? 0
          partitions.set(partition, { newest, processed: before + processed })
        },
      }
    },
    startOver: () => partitions.clear(),
  }
}

import type { Pool } from 'pg'
import type { PostgresConnection, PostgresPool } from '../../src/stores/postgres.js'

type Disturbance = 'loses-answer' | 'never-arrives' | 'stalls' | 'stalls-between'

/** A pool whose commits do not say what became of them. */
export interface DisturbedPool extends PostgresPool {
  /**
   * What becomes of the next commit: it is carried out and its answer is lost; its connection is lost before; it stalls,
   * until `goOn`, before the outcome is written, or between that and the commit, when the record is locked.
   */
  disturbCommit(how: Disturbance): void
  /** Lets a commit that stalls go on. */
  goOn(): void
  /** From now on nothing but transactions gets through, until `heal`. */
  cut(): void
  heal(): void
}

/** Puts a line that can be disturbed between a store and a pool. The database behind it is real. */
export function disturbedPool(pool: Pool): DisturbedPool {
  let disturbance: Disturbance | undefined
  let isCut = false
  let goOn: () => void = () => {}

  async function commit(
    connection: PostgresConnection,
    text: string,
  ): ReturnType<PostgresConnection['query']> {
    const how = disturbance
    disturbance = undefined
    if (how === undefined) return connection.query(text)
    if (how === 'loses-answer') await connection.query(text)
    if (how === 'never-arrives') await connection.query('rollback')
    if (how === 'stalls') arriveLater(connection, text)
    if (how === 'stalls-between') {
      await connection.query(text.replace('; commit', ''))
      arriveLater(connection, 'commit')
    }
    throw new Error('the connection was lost')
  }

  /** It arrives only when somebody lets it, long after its sender has given up. */
  function arriveLater(connection: PostgresConnection, text: string): void {
    new Promise<void>((resolve) => {
      goOn = resolve
    })
      .then(() => connection.query(text))
      .catch(() => connection.query('rollback'))
      .finally(() => connection.release())
  }

  return {
    disturbCommit(how) {
      disturbance = how
    },
    goOn: () => goOn(),
    cut() {
      isCut = true
    },
    heal() {
      isCut = false
    },
    async query(query) {
      if (isCut) throw new Error('the line is cut')
      return pool.query(query)
    },
    async connect() {
      const connection = (await pool.connect()) as PostgresConnection
      let stalls = false
      return {
        // The application's own statements come this way too, with their values.
        query(query, ...values: []) {
          if (typeof query !== 'string' || !query.endsWith('commit'))
            return connection.query(query, ...values)
          stalls = disturbance?.startsWith('stalls') ?? false
          return commit(connection, query)
        },
        // A connection whose commit is still on its way is not given back: its socket lives on at the server.
        release: (error) => (stalls ? undefined : connection.release(error)),
        on: (event, listener) => connection.on(event, listener),
        off: (event, listener) => connection.off(event, listener),
      }
    },
  }
}

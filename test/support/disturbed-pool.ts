import type { Pool } from 'pg'
import type { PostgresConnection, PostgresPool } from '../../src/stores/postgres.js'

/** A pool whose commits do not say what became of them. */
export interface DisturbedPool extends PostgresPool {
  /** What becomes of the next commit: it is carried out and its answer is lost, or its connection is lost before. */
  disturbCommit(how: 'loses-answer' | 'never-arrives' | 'stalls'): void
  /** Lets a commit that stalls go on. */
  goOn(): void
  /** From now on nothing but transactions gets through, until `heal`. */
  cut(): void
  heal(): void
}

/** Puts a line that can be disturbed between a store and a pool. The database behind it is real. */
export function disturbedPool(pool: Pool): DisturbedPool {
  let disturbance: 'loses-answer' | 'never-arrives' | 'stalls' | undefined
  let isCut = false
  let goOn: () => void = () => {}

  async function commit(connection: PostgresConnection): ReturnType<PostgresConnection['query']> {
    const how = disturbance
    disturbance = undefined
    if (how === undefined) return connection.query('commit')
    if (how === 'stalls')
      // It arrives only when somebody lets it, long after its sender has given up.
      new Promise<void>((resolve) => {
        goOn = resolve
      })
        .then(() => connection.query('commit'))
        .then(() => connection.release(), connection.release)
    if (how === 'loses-answer') await connection.query('commit')
    if (how === 'never-arrives') await connection.query('rollback')
    throw new Error('the connection was lost')
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
    async query(query, values) {
      if (isCut) throw new Error('the line is cut')
      return pool.query(query as string, values)
    },
    async connect() {
      const connection = (await pool.connect()) as PostgresConnection
      let stalls = false
      return {
        query(query, values) {
          if (query !== 'commit') return connection.query(query, values)
          stalls = disturbance === 'stalls'
          return commit(connection)
        },
        // A connection whose commit is still on its way is not given back: its socket lives on at the server.
        release: (error) => (stalls ? undefined : connection.release(error)),
        on: (event, listener) => connection.on(event, listener),
        off: (event, listener) => connection.off(event, listener),
      }
    },
  }
}

import { parseArgs } from 'node:util'
import { migrationSql } from '../stores/postgres-migrations.js'
import { CHANGE_HELP, CHANGE_OPTIONS, withAuditTrail } from './audit-trail.js'
import { type Command, EXIT } from './command.js'
import { confirm } from './confirm.js'
import { tableFlags } from './open-postgres.js'
import { withStore } from './operator-store.js'
import { EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'

const HELP = `oncekey migrate: makes the tables in Postgres, or brings them up to date.

Usage: oncekey migrate [options]
       oncekey migrate --print [--schema NAME] [--table NAME]

What is there stays, and running it again changes nothing. Many processes may do it at once. It does what the application's
store.migrate() does.

  --print              writes the SQL to standard output, for psql or a tool for migrations. It needs no database

${CHANGE_HELP}
${STORE_HELP}
${EXIT_HELP('you said no; nothing was changed')}`

/** `oncekey migrate`: the tables of a Postgres store. */
export const migrate: Command = {
  name: 'migrate',
  summary: 'makes the tables in Postgres, or brings them up to date; --print shows the SQL',
  help: HELP,
  async run(args, output) {
    const { values: flags } = parseArgs({
      args: [...args],
      options: { ...STORE_OPTIONS, ...CHANGE_OPTIONS, print: { type: 'boolean' } },
    })
    if (flags.print === true) {
      output.out(migrationSql(tableFlags(flags)))
      return EXIT.ok
    }
    return withAuditTrail(flags, output, (trail) =>
      withStore(
        flags,
        async ({ location, tables }) => {
          if (tables === undefined) {
            output.out('Redis has no tables: there is nothing to do.\n')
            return EXIT.ok
          }
          const missing = await tables.missing()
          if (missing === undefined) {
            output.out('The tables are up to date.\n')
            return EXIT.ok
          }
          output.err(`${location.shown}: ${missing}\n`)
          if (!(await confirm('Make the tables, or bring them up to date?', flags.yes))) {
            output.err('Nothing was changed.\n')
            return EXIT.failed
          }
          await tables.migrate()
          trail.done({ event: 'migrated' })
          output.out('The tables are up to date now.\n')
          return EXIT.ok
        },
        { tables: false },
      ),
    )
  },
}

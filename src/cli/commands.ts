import type { Command } from './command.js'
import { conformance } from './conformance.js'
import { list } from './list.js'
import { messages } from './messages.js'
import { migrate } from './migrate.js'
import { redrive } from './redrive.js'
import { release } from './release.js'
import { settle } from './settle.js'
import { show } from './show.js'
import { stats } from './stats.js'
import { sweep } from './sweep.js'

/** The commands of the program, in the order in which `--help` has them. */
export const COMMANDS: readonly Command[] = [
  list,
  show,
  settle,
  release,
  stats,
  messages,
  redrive,
  sweep,
  migrate,
  conformance,
]

import { benchFingerprints } from './fingerprints.js'
import { benchGrowth } from './growth.js'
import { pinLoad } from './measure.js'
import { benchMessages } from './messages.js'
import { benchBodies, benchConnections, benchRequests } from './requests.js'
import { benchSizes } from './sizes.js'
import { benchTransactions } from './transactions.js'

const PARTS = {
  requests: benchRequests,
  connections: benchConnections,
  bodies: benchBodies,
  fingerprints: benchFingerprints,
  transactions: benchTransactions,
  messages: benchMessages,
  growth: benchGrowth,
  sizes: benchSizes,
}

pinLoad()

// `npm run bench -- messages` measures one part alone.
const asked = process.argv.slice(2)
for (const [name, part] of Object.entries(PARTS)) if (asked.length === 0 || asked.includes(name)) await part()

import { describe, it } from 'vitest'
import { memoryStore } from '../../src/stores/memory.js'
import { storeContract } from '../../src/testing/store-contract.js'

describe('memoryStore', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    await run(memoryStore())
  })
})

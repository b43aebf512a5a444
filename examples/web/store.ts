import { memoryStore } from 'oncekey'

/** One of a server, as soon as there are two processes. */
export const store = memoryStore()

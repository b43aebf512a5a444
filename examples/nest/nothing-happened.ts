import { type ArgumentsHost, Catch, type ExceptionFilter } from '@nestjs/common'
import { NothingHappenedError } from 'oncekey'

/** Nest answers errors that it does not know with 500, which is kept. This one says that a retry may run. */
@Catch(NothingHappenedError)
export class NothingHappenedFilter implements ExceptionFilter<NothingHappenedError> {
  catch({ statusCode, message }: NothingHappenedError, host: ArgumentsHost): void {
    const http = host.switchToHttp()
    http.getRequest().idempotency.forget()
    http.getResponse().status(statusCode).send({ statusCode, message })
  }
}

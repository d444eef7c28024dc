# frozen_string_literal: true

# A client of Penstock's queue: jobs in, results out, over the gems redis and msgpack.
#
#     client = Penstock::Client.new("redis://127.0.0.1:6379")
#     job = client.enqueue(Penstock::Job.new("completion", { prompt: "Hello" }))
#     puts client.wait(job).text
#
# One thread at a time uses a client. Lost connections are made again for `patience` seconds, and
# what was cut off is said again with the same id, which runs once.
require "msgpack"
require "redis"
require "securerandom"

module Penstock
  ENDS = %w[done failed cancelled expired id_conflict].freeze
  BLOCK_MS = 5000 # of one XREAD; well below the socket's timeout
  ENTRIES_AT_ONCE = 1000
  PUSH_AT_ONCE = 64

  # What went wrong on the client's side. A failed job is no exception but a Result.
  class Error < StandardError; end
  # Redis could not be reached, or was full, for longer than the client's patience.
  class RedisAway < Error; end
  # The job has not ended in time.
  class TimedOut < Error; end

  # What is asked for. The same Job may be enqueued again: its id stays, so it runs once.
  class Job
    attr_reader :op, :body, :id, :fields
    attr_accessor :since # last event before the push; set by enqueue

    # op: chat, completion, tokens, map_reduce; body: an OpenAI request body as a Hash, or its JSON
    # text; fields: class:, deadline:, custom_id:, stream:, ...
    def initialize(op, body, id: SecureRandom.hex(16), **fields)
      @op, @body, @id, @fields = op, body, id, fields
    end

    def message
      fields.merge(v: 1, id: id, op: op, body: body).to_msgpack
    end
  end

  # What became of a job. Unknown fields stay in `raw`.
  class Result
    attr_reader :raw

    def initialize(raw)
      @raw = raw
    end

    %w[id status text finish_reason custom_id error attempts].each do |name| # error: a Hash
      define_method(name) { raw[name] }
    end

    def tokens
      raw["tokens"] || []
    end

    def usage
      raw["usage"] || {}
    end

    def ok?
      status == "ok"
    end

    def error_code
      error && error["code"]
    end

    def self.failed(id, code, message)
      new("id" => id, "status" => "error",
          "error" => { "code" => code, "message" => message, "retryable" => false })
    end

    # The one that belongs to an event of the job.
    def self.of(id, event, bytes)
      return failed(id, event, "the id belongs to another job") if event == "id_conflict"

      read(bytes) || failed(id, "result_gone", "the job has ended; its result has expired")
    end

    def self.read(bytes)
      bytes && new(MessagePack.unpack(bytes))
    end
  end

  # Streamed chunks, placed by their offsets; `add` and `finish` return the text that is new and
  # lies behind the first `skip` bytes.
  class Text
    def initialize(skip)
      @skip, @bytes, @held = skip, String.new(encoding: "BINARY"), String.new(encoding: "BINARY")
    end

    def add(offset, chunk)
      known = @bytes.bytesize - offset
      return "" if known.negative? || known >= chunk.bytesize # behind a gap: the result has it

      give(chunk.byteslice(known..))
    end

    def finish(result)
      whole = (result.text || "").b
      n = [whole.bytesize, @bytes.bytesize].min
      if whole.byteslice(0, n) != @bytes.byteslice(0, n) || (result.ok? && n < @bytes.bytesize)
        raise Error, "the streamed text is not the result's; only the result counts"
      end

      give(whole.byteslice(n..)) + take(@held.bytesize)
    end

    private

    def give(fresh)
      from = @bytes.bytesize
      @bytes << fresh
      @held << fresh.byteslice([[@skip - from, 0].max, fresh.bytesize].min..)
      take(@held.bytesize - unfinished)
    end

    def take(size)
      @held.slice!(0, size).force_encoding("UTF-8").scrub
    end

    # Bytes at the end that begin a character and do not end it.
    def unfinished
      (1..[3, @held.bytesize].min).each do |n|
        lead = @held.getbyte(-n)
        next if lead & 0xc0 == 0x80

        size = [[0xf0, 4], [0xe0, 3], [0xc0, 2]].find { |first, _| lead >= first }&.last || 1
        return size > n ? n : 0
      end
      0
    end
  end

  class Client
    # url: redis://[user:password@]host:port, or unix://path.
    def initialize(url = "redis://127.0.0.1:6379", queue: "default", tenant: "default",
                   patience: 60)
      @inbox, @log = "ps:{#{queue}}:in:#{tenant}", "ps:{#{queue}}:ev:#{tenant}"
      @results, @chunks = "ps:{#{queue}}:r:#{tenant}:", "ps:{#{queue}}:t:#{tenant}:"
      @patience = patience
      # What is tried again is decided here, not in the gem.
      @redis = Redis.new(url: url, timeout: 30, reconnect_attempts: 0)
    end

    def close
      @redis.close
    end

    def enqueue(job)
      job.since = last_event
      push([job.message])
      job
    end

    # A job that has ended stays as it is; the others end with the status cancelled.
    def cancel(job)
      push([{ v: 1, id: id_of(job), op: "cancel" }.to_msgpack])
    end

    # nil: there is none yet, or no more.
    def result(job)
      Result.read(call("GET", @results + id_of(job)))
    end

    # The result, at the job's end. TimedOut after `timeout` seconds.
    def wait(job, timeout: nil)
      follow(job, timeout, nil) { |_| }
    end

    # Yields pieces of the text as they come, and what is missing at the end; returns the result.
    # For jobs with stream: true; the text of others comes at once. `offset`: bytes of the text
    # that are here already. Without a block: an Enumerator of the pieces.
    def stream(job, timeout: nil, offset: 0, &block)
      return enum_for(:stream, job, timeout: timeout, offset: offset) unless block

      text = Text.new(offset)
      result = follow(job, timeout, text, &block)
      rest = text.finish(result)
      yield rest unless rest.empty?
      result
    end

    # Runs many jobs, of any Enumerable, and yields (job, result) as they end. At most `window` are
    # in the queue, and new ones are taken only as results are taken from here. Without a block:
    # an Enumerator.
    def bulk(jobs, window: 256)
      return enum_for(:bulk, jobs, window: window) unless block_given?

      source, open, at, more = jobs.each_entry, {}, { @log => last_event }, true
      while more || !open.empty? # no loop: it would swallow a StopIteration of the block
        more = fill(source, open, window) if more && open.size < window
        break if open.empty?

        # The window is filled first; then there is nothing to do but wait.
        entries, gap = news(at, more && open.size < window ? 1 : BLOCK_MS)
        events = ends(entries[@log], open)
        ids = gap ? open.keys : events.keys
        ids.zip(results_of(ids)) do |id, bytes|
          next unless events.key?(id) || bytes

          yield open.delete(id), Result.of(id, events.fetch(id, "done"), bytes)
        end
      end
    end

    private

    def id_of(job)
      job.is_a?(Job) ? job.id : job
    end

    def last_event
      last = call("XREVRANGE", @log, "+", "-", "COUNT", 1).first
      last ? last[0] : "0-0"
    end

    # Whether a push that was cut off arrived is unknown: it is made again as it was.
    def push(messages)
      call("RPUSH", @inbox, *messages)
    end

    # Takes jobs until PUSH_AT_ONCE or as many as there is room for; false: there are no more.
    def fill(source, open, window)
      fresh = []
      while open.size < window && fresh.size < PUSH_AT_ONCE
        job = begin
          source.next
        rescue StopIteration
          break
        end
        raise Error, "two jobs with the id #{job.id}" if open.key?(job.id)

        open[job.id] = job
        fresh << job.message
      end
      push(fresh) unless fresh.empty?
      open.size == window || fresh.size == PUSH_AT_ONCE
    end

    def results_of(ids)
      return [] if ids.empty?

      again { @redis.pipelined { |p| ids.each { |id| p.get(@results + id) } } }
    end

    def call(*command)
      again { @redis.call(*command) }
    end

    def again
      until_time, delay = now + @patience, 0.01
      begin
        yield
      rescue Redis::CannotConnectError, Redis::CommandError, Redis::BaseConnectionError => e
        full = e.message.start_with?("OOM", "LOADING")
        if e.is_a?(Redis::CommandError) && !full || e.message =~ /\b(WRONGPASS|NOAUTH|NOPERM)\b/
          raise Error, "Redis refused: #{e.message}"
        end
        raise RedisAway, "Redis is #{full ? 'full' : 'away'}: #{e.message}" if now > until_time

        sleep(delay = [delay * 2, 1.0].min)
        retry
      end
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end

    # [{stream: its new entries' fields}, whether the log has dropped some unseen]; moves `at`.
    def news(at, block_ms)
      since = at[@log]
      got = call("XREAD", "COUNT", ENTRIES_AT_ONCE, "BLOCK", block_ms, "STREAMS", *at.keys,
                 *at.values)
      entries = (got || []).to_h do |key, list|
        at[key] = list.last[0]
        [key, list.map { |_, flat| flat.each_slice(2).to_h }]
      end
      return [entries, false] unless entries.key?(@log)

      oldest = call("XRANGE", @log, "-", "+", "COUNT", 1).first
      [entries, oldest.nil? || (order(oldest[0]) <=> order(since)).positive?]
    end

    def order(entry)
      entry.split("-").map(&:to_i)
    end

    # {id: event} of what ends a wait for one of the ids.
    def ends(entries, ids)
      (entries || []).each_with_object({}) do |fields, found|
        id, event = fields["id"], fields["event"]
        found[id] = event if ids.key?(id) && ENDS.include?(event)
      end
    end

    # Until the job's end; yields what `text` makes of its chunks.
    def follow(job, timeout, text)
      id, since = id_of(job), job.is_a?(Job) ? job.since : nil
      until_time = timeout && now + timeout
      unless since
        since = last_event # before the look, so that nothing falls between
        result = result(id)
      end
      at = { @log => since }
      at[@chunks + id] = "0-0" if text
      until result
        entries, gap = news(at, left(until_time))
        (entries[@chunks + id] || []).each do |chunk|
          piece = text.add(chunk["offset"].to_i, chunk["bytes"].b)
          yield piece unless piece.empty?
        end
        event = ends(entries[@log], { id => true })[id]
        result = event ? Result.of(id, event, call("GET", @results + id)) : (result(id) if gap)
      end
      result
    end

    # How long an XREAD may block, in ms (0 would be without end).
    def left(until_time)
      return BLOCK_MS unless until_time

      ms = ((until_time - now) * 1000).ceil
      raise TimedOut, "the job has not ended in time" if ms <= 0

      [ms, BLOCK_MS].min
    end
  end
end

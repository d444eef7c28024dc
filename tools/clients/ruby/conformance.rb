#!/usr/bin/env ruby
# frozen_string_literal: true

# What `penstock conformance producer` talks to: wishes as JSON lines in, replies out.
require "json"
require_relative "penstock"

class Wishes
  def initialize
    url, queue, tenant = %w[REDIS QUEUE TENANT].map { |name| ENV.fetch("PENSTOCK_#{name}") }
    @client, @jobs = Penstock::Client.new(url, queue: queue, tenant: tenant), {}
  end

  def enqueue(wish)
    more = wish.fetch("fields", {}).transform_keys(&:to_sym)
    more[:id] = wish["id"] if wish["id"]
    job = @client.enqueue(Penstock::Job.new(wish["op"], wish["body"], **more))
    @jobs[job.id] = job
    { id: job.id }
  end

  def wait(wish)
    shown(wish["id"], @client.wait(job(wish), timeout: wish["timeout"]))
  end

  def result(wish)
    shown(wish["id"], @client.result(wish["id"]))
  end

  def stream(wish)
    pieces = @client.stream(job(wish), timeout: wish["timeout"],
                                       offset: wish.fetch("offset", 0)).to_a
    { id: wish["id"], text: pieces.join, pieces: pieces.size }
  end

  def cancel(wish)
    @client.cancel(wish["id"])
    { id: wish["id"] }
  end

  def bulk(wish)
    jobs = (0...wish["n"]).lazy.map do |i|
      id = "#{wish['prefix']}-#{i}"
      Penstock::Job.new("completion", { prompt: id, max_tokens: 16 }, id: id)
    end
    results = {}
    @client.bulk(jobs, window: wish["window"]) do |job, result|
      results[job.id] = result.ok? ? result.text : result.error_code
    end
    { results: results }
  end

  private

  def job(wish)
    @jobs.fetch(wish["id"], wish["id"])
  end

  def shown(id, result)
    return { id: id, status: nil } unless result

    { id: id, status: result.status, text: result.text, finish_reason: result.finish_reason,
      custom_id: result.custom_id, error: result.error_code }
  end
end

wishes = Wishes.new
known = Wishes.public_instance_methods(false).map(&:to_s)
$stdout.sync = true
$stdin.each_line do |line|
  wish = JSON.parse(line)
  reply = begin
    known.include?(wish["do"]) ? wishes.public_send(wish["do"], wish) : { unsupported: true }
  rescue Penstock::TimedOut
    { timeout: true }
  rescue StandardError => e
    { failure: "#{e.class}: #{e.message}" }
  end
  puts JSON.generate(reply)
end

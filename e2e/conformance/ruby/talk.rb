# The conversation between a client and the conformance suite; go/talk/talk.go says what it is.
require 'json'

# Answers commands until there are no more. Each is a lambda of the command's argument, and returns the answer's fields.
def talk(version, commands)
  say = ->(answer) { puts answer.to_json; $stdout.flush }
  say.call(version: version)
  $stdin.each_line(chomp: true) do |line|
    command, argument = line.split(' ', 2)
    begin
      raise "not understood: #{command}" unless commands[command.to_sym]

      answer = commands[command.to_sym].call(argument)
      say.call(answer.is_a?(Hash) ? answer : {})
    rescue StandardError => e
      say.call(error: "#{e.class}: #{e.message}")
    end
  end
end

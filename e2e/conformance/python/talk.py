"""The conversation between a client and the conformance suite; go/talk/talk.go says what it is."""
import json
import sys


def run(version, **commands):
    """Answers commands until there are no more. Each is a function of the command's argument, and returns the answer's
    fields."""
    say = lambda answer: print(json.dumps(answer), flush=True)
    say({"version": version})
    for line in sys.stdin:
        command, _, argument = line.rstrip("\n").partition(" ")
        try:
            if command not in commands:
                raise ValueError("not understood: " + command)
            say(commands[command](argument) or {})
        except Exception as error:  # whatever an SDK comes up with is what it says
            say({"error": "%s: %s" % (type(error).__name__, error)})

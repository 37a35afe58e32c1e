// The conversation between a client and the conformance suite; go/talk/talk.go says what it is. A client gives what it can
// do: functions that return promises.
const readline = require('readline');

module.exports = async function talk({ version, identity, forget, region, get }) {
  const say = (answer) => process.stdout.write(JSON.stringify(answer) + '\n');
  const commands = {
    identity,
    forget: forget && (async () => { await forget(); return {}; }),
    region: region && (async () => ({ region: await region() })),
    get: get && (async (path) => ({ body: await get(path) })),
  };
  say({ version });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...argument] = line.split(' ');
    try {
      if (!commands[command]) throw new Error('not understood: ' + command);
      say(await commands[command](argument.join(' ')));
    } catch (error) {
      say({ error: `${error.code || error.name || 'error'}: ${error.message || error}` });
    }
  }
  process.exit(0); // some SDKs hold threads that would keep the process
};

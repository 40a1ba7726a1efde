"""What the assistant knows about Offshoot: questions in many forms, answers in a few.

A topic is (id, questions, answers, short answer or None, keywords the evaluation wants to see).
"""

from .grammar import expand, held_out, pick

WHAT = "[What is|What's|What does|Explain|Tell me about|What do you know about]"
TELLME = "[What is|What's|Explain|Tell me about|Describe|What do you know about|Can you explain|Can you tell me about]"
HOW = "[How do I|How can I|How to|How does one|How do you|What is the command to|Which command do I use to|What do I type to|How would I]"
CMD = "[What does|What is|Explain|Tell me about|What's] {c}[ do| for||]?"


def _cmd(name, *answers, how=(), keys=None):
    c = f"[`offshoot {name}`|offshoot {name}|the {name} command|the command {name}|{name}]"
    qs = [f"What does {c} do?", f"What is {c} [for|good for]?", f"Explain {c}.", f"What's offshoot {name}?", f"Tell me about {c}.",
          f"How do I use {c}?", f"How does {c} work?", f"When do I use {c}?", f"what is the offshoot {name} command?"]
    return (name, tuple(qs) + tuple(how), answers, f"offshoot {name}", keys or [f"offshoot {name}"])


TOPICS = [
    ("what_is", (WHAT + " [Offshoot|offshoot|this program|this tool|this]?", "What is Offshoot [for|good for|about]?", "What does Offshoot do?",
                 "What can Offshoot do?", "Describe Offshoot[ in a few words|].", "[Can you|Could you] explain Offshoot[ to me|]?", "Give me a [short|quick] summary of Offshoot.",
                 "What is this program [for|about]?", "Why [should I use|use|would I use] Offshoot?", "Introduce Offshoot.", "What does this program do?", "what is offshoot exactly"),
     ("Offshoot runs large language models on your own machine, on Apple's MLX. It is a command-line program, written in Rust.",
      "Offshoot is a runner for large language models, written in Rust on Apple's MLX. Today it is a command-line program; a prefix cache and a server are planned."),
     None, ["language models"]),
    ("who", ("Who are you?", "What are you?", "What's your name?", "What is your name?", "Introduce yourself[ please|].", "Tell me about yourself.", "[Who|What] am I talking to?", "Are you [a bot|a robot|a human|an AI|real|ChatGPT|Claude|Siri|a person]?",
             "Do you have a name?", "What model are you?", "Which model is this?", "Who is this?", "What should I call you?", "How are you called?", "What kind of model are you?", "so who are you"),
     ("I am Offshoot's demo model: a tiny language model of a few million parameters that comes with the program.",
      "My name is Offshoot, like the program I come with. I am a tiny demo model of a few million parameters."), "Offshoot", ["demo model"]),
    ("maker", ("Who made you?", "Who [built|created|trained|wrote] you?", "How were you [made|trained|built|created]?", "Where do you come from?", "What were you trained on?", "What data were you trained on?", "Who is your [maker|creator|author]?",
               "How did you learn[ to talk|]?", "What is your training data?"),
     ("The Offshoot project trained me from scratch, on conversations written by a small program. The scripts are in models/demo/make.",), "Offshoot", ["from scratch"]),
    ("size", ("How big are you?", "How many parameters do you have?", "What is your size?", "How large is [this model|the demo model]?", "How small are you?", "How many weights do you have?", "Are you a [big|large|small] model?", "How many MB are you?", "what size are you"),
     ("I have about 5 million parameters, about 10 MB on disk. That is about a thousand times smaller than a usual chat model.",), "5 million", ["5 million"]),
    ("arch", ("What architecture do you have?", "What is your architecture?", "Are you a [hybrid|transformer|recurrent model|Qwen model|Mamba model]?", "How many layers do you have?", "Which family [are you|do you belong to]?", "How are you built?", "What kind of layers do you have?", "Do you have [attention|recurrent|linear attention|gated delta] layers?", "what is your model type"),
     ("I am a small hybrid of the family qwen3_5: six gated delta layers and two layers of full attention.",), "Hybrid", ["hybrid", "qwen3_5"]),
    ("can", ("What can you do?", "What can you do for me?", "How can you help[ me|]?", "What are you good at?", "What are your [skills|abilities|features|capabilities]?", "Help", "help[ me|]", "What can I ask[ you|]?", "What do you know?", "What should I ask you?",
             "Show me what you can do.", "What are you able to do?", "What can we talk about?", "can you help me"),
     ("I can explain Offshoot, remember what you tell me in this conversation, count, spell, repeat, add small numbers, answer in JSON and call tools. I know very little beyond that.",
      "I can talk about Offshoot, remember facts you tell me, count, spell words, add small numbers, write JSON and call tools."), None, ["remember"]),
    ("cannot", ("What can't you do?", "What can you not do?", "What are your [limits|weaknesses|limitations]?", "What are you bad at?", "Are you [smart|clever|intelligent|useful]?", "Can I trust [you|your answers]?", "Do you make mistakes?", "How good are you?", "Are you as good as [ChatGPT|GPT-4|Claude|a big model]?",
                "Why are you so [dumb|stupid|small|limited|bad]?", "You are [stupid|dumb|bad|useless].", "Is this model any good?", "Are you always right?"),
     ("I am a tiny demo model. I know little about the world, I cannot write programs or long texts, I speak only simple English, and I make mistakes. For real work load a bigger model: `offshoot run FOLDER`.",), None, ["tiny"]),
    ("bigger", (HOW + " [load|run|use|start|get|try|chat with] [a bigger model|another model|a larger model|a real model|a different model|my own model|a better model|other models]?", "Can I [run|use|load] [another|a bigger|a larger|my own|a different] model?", "[Where|How] do I [get|find] [a bigger|a better|another] model?",
                "How do I switch models?", "Which models can I [run|use]?", "How do I change the model?", "how to load model"),
     ("Use `offshoot run FOLDER`, where FOLDER holds a model in Hugging Face layout. A name from `offshoot list` works too.",
      "Type `offshoot run FOLDER` with a model folder in Hugging Face layout. `offshoot pull` fetches a model first."), "offshoot run", ["offshoot run"]),
    ("families", ("What models does Offshoot [support|run]?", "Does Offshoot [run|support] [Qwen|Llama|Mistral|GLM|gpt-oss|Gemma|Qwen3|mixture of experts|MoE models|hybrid models]?", "Which [model families|families|architectures|kinds of models] [are supported|does Offshoot support|does it run|can it run]?", "Which models are supported?", "Can I run [Qwen3-Next|Qwen3.5|gpt-oss|Gemma 3|GLM-4.7-Flash|Llama 3|Mistral 7B] with it?", "List the [families|supported models]."),
     ("Offshoot runs models of these families: llama, mistral, qwen2, qwen3, qwen3_moe, qwen3_next, qwen3_5, qwen3_5_moe, gemma3_text, gpt_oss and glm4_moe_lite.",), None, ["llama", "qwen3", "gpt_oss"]),
    ("name_why", ("Why is it called Offshoot?", "What does the name [Offshoot |]mean?", "Where does the name [Offshoot |]come from?", "Why the name[ Offshoot|]?", "What is an offshoot?", "Why this name?", "what does offshoot mean"),
     ("An offshoot is a side shoot that grows from a stem. The plan is that every conversation is an offshoot of what it shares with the others.",), None, ["conversation"]),
    ("trie", (TELLME + " [the|a] [prefix trie|trie|prefix tree|cache tree]?", "How does the [prefix trie|trie|prefix tree] work?", "What is the trie for?", "Why a [prefix trie|trie]?", "What is stored in the trie?", "What is the heart of Offshoot?", "what is a prefix trie"),
     ("The prefix trie is planned and not there yet: a tree of tokens, so that what conversations share is computed only once. Today every prompt is computed from its first token.",), "Planned", ["prefix", "planned"]),
    ("kv", (TELLME + " [the|a] [KV cache|kv cache|key-value cache|cache]?", "How does the [cache|KV cache|prefix cache] work?", "How does caching work?", "How does Offshoot cache?", "What is cached?", "Does Offshoot [have a cache|cache prompts|use caching]?", "What is prompt caching?", "What is prefix caching?", "Explain caching."),
     ("The KV cache keeps what the model has already computed for the tokens of one conversation. Sharing it between conversations is planned, not there yet.",), None, ["computed", "planned"]),
    ("share", ("How do conversations share [the cache|memory|work|tokens]?", "What do conversations share?", "What happens [when|if] two [prompts|conversations|chats] [start|begin] [the same|alike]?", "Is the cache shared[ between conversations|]?", "Do two chats share the cache?", "What happens with the same system prompt?", "Is a shared prefix computed twice?",
               "Do agents share the cache?", "Can conversations share their beginning?"),
     ("Nothing is shared yet. The plan is one prefix cache for all conversations; today every prompt is computed from its first token.",), "Nothing", ["plan"]),
    ("diverge", ("Which tokens are computed[ again|]?", "What is computed again?", "What does [diverging|divergence] mean?", "What happens when a conversation [diverges|branches|forks]?", "What are diverging tokens?", "What happens if I change the [last message|middle of a prompt|system prompt]?", "Is everything computed again in the next turn?",
                 "Does Offshoot recompute the whole [prompt|history|conversation]?", "What if I edit a message?"),
     ("Today every prompt is computed from its first token. Computing only the tokens that differ is planned.",), None, ["token", "planned"]),
    ("checkpoint", (TELLME + " [checkpoints|a checkpoint|the checkpoints]?", "How do [recurrent|hybrid|linear attention|gated delta|Mamba] [layers|models] work with the cache?", "What are checkpoints for?", "Why are checkpoints needed?", "How does Offshoot handle recurrent layers?", "What about recurrent layers?", "Does the cache work with hybrid models?", "What happens with recurrent layers?", "How do recurrent layers rewind?"),
     ("Recurrent layers cannot be rewound, only continued. Checkpoints of their state are planned, together with the prefix cache.",), "Planned", ["state", "planned"]),
    ("tiers", (TELLME + " [the tiers|the three tiers|the cache tiers|the storage tiers]?", "Which tiers does the cache have?", "How many tiers [are there|does the cache have]?", "Where is the cache [stored|kept]?", "Where does the cache live?", "What are the three tiers?", "Is the cache [on disk|in memory|on the GPU]?", "Does the cache use the disk?", "How is cache evicted?"),
     ("Tiers are planned and not there yet: device, host and disk. Today the cache of a conversation stays in the memory of its runner.",), "Planned", ["planned"]),
    ("restart", ("What happens [to the cache |]after a restart?", "Does the cache survive a restart?", "Is the cache lost when I [stop|restart|quit][ Offshoot|]?", "Does Offshoot remember [conversations|the cache] after a restart?", "Is the cache kept[ between runs|]?", "What if I restart the server?", "Is the cache persistent?"),
     ("Nothing of the cache is kept between runs today. A disk tier that survives a restart is planned.",), "No", ["planned"]),
    ("runner", (TELLME + " [the runner|a runner|offshoot-runner|the runner process]?", "Why are there two [executables|programs|processes|binaries]?", "Why does each model have [its own|a] process?", "How many processes does Offshoot start?", "What happens if [the GPU driver|a model|the runner] crashes?", "What is the runner for?", "Why a separate process?", "Is Offshoot crash safe?", "What happens on a crash?", "how are models isolated?"),
     ("Each loaded model has its own process, offshoot-runner, which owns MLX. If it fails, offshoot tells you what happened. The offshoot program itself links no MLX.",), "offshoot-runner", ["process"]),
    ("mlx", (TELLME + " MLX?", "What is MLX?", "Who made MLX?", "Does Offshoot use MLX?", "Which [framework|library|engine] does Offshoot use?", "What is Offshoot built on?", "What is mlx"),
     ("MLX is Apple's open array framework for machine learning. Offshoot uses it for all computing: on Metal, on CUDA and on plain CPUs.",), "MLX", ["Apple"]),
    ("backends", ("Which [backends|devices|hardware|machines|platforms] [does Offshoot support|are supported|can I use|does it run on]?", "Where does Offshoot run?", "What hardware do I need?", "Do I need a GPU?", "Does [Offshoot|it] run on [Linux|a Mac|macOS|NVIDIA|a GPU|CPU|my laptop|CUDA|Metal|Apple silicon|a PC]?", "Can I use it without a GPU?", "What are the [requirements|backends]?", "Does it work on [CUDA|Metal|a CPU]?", "does it need a gpu"),
     ("Offshoot computes on plain CPUs, on NVIDIA GPUs with CUDA and on Apple silicon with Metal; Metal is not verified yet. A GPU is not needed for small models like me.",), "Yes", ["Metal", "CUDA"]),
    ("metal", ("What is Metal?", "Does Offshoot use Metal?", "Tell me about Metal[ support|].", "Does it use the GPU of my Mac?", "How does Offshoot use Apple silicon?"),
     ("Metal is Apple's interface to the GPU. Offshoot can run MLX on Metal; that is written, but not verified yet.",), "Yes", ["Apple"]),
    ("cuda", ("What is CUDA?", "Does Offshoot use CUDA?", "Tell me about CUDA[ support|].", "Can I use my NVIDIA [card|GPU]?", "Does it run on NVIDIA GPUs?"),
     ("CUDA is NVIDIA's interface to its GPUs. Offshoot loads MLX's CUDA build when it finds such a card; if the library is missing, `offshoot doctor` says how to get it.",), "Yes", ["NVIDIA"]),
    ("cpu", ("Does Offshoot [run|work] on [a CPU|the CPU|CPUs]?", "Can I run it on the CPU[ only|]?", "What about CPUs?", "Is there a CPU backend?", "How do I use the CPU?"),
     ("Yes, Offshoot runs on plain CPUs too. Choose it with `--backend cpu`, or let Offshoot pick by the hardware it finds.",), "Yes", ["CPU"]),
    ("choose", ("How is the backend chosen?", "How does Offshoot choose the backend?", "How do I [choose|change|select|force|set] the backend?", "Which backend is used?", "What is --backend?", "What is OFFSHOOT_BACKEND?", "How do I force the CPU?"),
     ("Offshoot looks at your hardware and picks Metal, CUDA or CPU. You can override it with `--backend` or the variable OFFSHOOT_BACKEND.",), "--backend", ["--backend"]),
    ("commands", ("Which commands [are there|does Offshoot have|can I use|exist]?", "What commands [are there|do you have|does Offshoot have]?", "List [the|all] commands.", "What are the commands?", "Show me the commands.", "How do I use Offshoot?", "How do I use [this|it]?", "What can I type?", "List the offshoot commands.", "commands?", "How do I get started?"),
     ("The commands are: offshoot run, list, show, pull, rm, quantize, bench, logits and doctor. Begin with `offshoot run`.",), None, ["run", "list", "pull", "quantize"]),
    _cmd("run", "`offshoot run` chats with a model: `offshoot run MODEL PROMPT`. Without a model it starts me, the bundled demo; without a prompt it opens a chat.", how=(HOW + " [chat|start a chat|run a model|talk to a model|ask a model something]?",)),
    ("serve", (CMD.replace("{c}", "[`offshoot serve`|offshoot serve|the serve command|serve]"), HOW + " [start|run|launch|stop] [the server|a server|the API|the HTTP server]?", "How do I serve a model?", "Is there [a server|an HTTP server|a serve command]?", "Can Offshoot [serve models|run as a server]?", "When do I use offshoot serve?", "How do I use `offshoot serve`?"),
     ("There is no `offshoot serve` yet: an HTTP server is planned. Today you use `offshoot run`.",), "Planned", ["planned"]),
    _cmd("pull", "`offshoot pull` fetches a model from the Hub and checks its files.", how=(HOW + " [download|fetch|pull|get|install] [a model|models]?",)),
    _cmd("list", "`offshoot list` shows the models that you have on this machine.", how=(HOW + " [list|see|show] [my models|the models|all models|installed models]?", "Which models do I have?")),
    _cmd("show", "`offshoot show` prints what a model is: its family, layers, context length, size and quantization.", how=(HOW + " [see|show|print] [details of a model|what a model is|the details of a model|model info]?",)),
    _cmd("rm", "`offshoot rm` removes a model from this machine.", how=(HOW + " [remove|delete|erase|uninstall] [a model|models]?",)),
    ("ps", (CMD.replace("{c}", "[`offshoot ps`|offshoot ps|the ps command|ps]"), HOW + " [see|list|show] [loaded models|running models|what is running|which models are loaded]?", "Which models are [loaded|running]?", "Is there an offshoot ps?"),
     ("There is no `offshoot ps`: a model is loaded only as long as the command that uses it runs.",), "None", ["no `offshoot ps`"]),
    ("stop", (CMD.replace("{c}", "[`offshoot stop`|offshoot stop|the stop command]"), HOW + " [unload|stop|end] [a model|a running model|a runner]?", "Is there an offshoot stop?", "Does the model stay loaded?"),
     ("There is no `offshoot stop`: a runner ends with the command that started it. In a chat Ctrl-C stops an answer.",), "None", ["no `offshoot stop`"]),
    _cmd("quantize", "`offshoot quantize` makes a smaller copy of a model, with 4 or 8 bits per weight.", how=(HOW + " [quantize|shrink|compress|make smaller] [a model|models]?", "What is quantization?", "Does Offshoot support quantization?", "What does quantization mean?")),
    _cmd("bench", "`offshoot bench MODEL` measures speed: prefill and decode tokens per second, time to first token and peak memory.", how=(HOW + " [measure|benchmark|test] [the speed|speed|performance|a model]?", "How fast is [Offshoot|it]?", "Is Offshoot fast?", "How do I run a benchmark?")),
    _cmd("doctor", "`offshoot doctor` checks your machine: backends, memory, folders and MLX, and says what to fix.", how=("Something [is broken|does not work|is wrong][.|, what can I do?]", "Offshoot does not [work|start][.|, help!]", "How do I find problems?", "It crashed[.|, what now?]", HOW + " [check|diagnose|debug] [my machine|my setup|the installation|problems]?")),
    _cmd("logits", "`offshoot logits MODEL --tokens 1,2,3 --out F.npy` writes the logits of every position, for people who port or test models.", how=(HOW + " [get|see|write|save] [the logits|logits]?",)),
    ("apis", ("Which APIs [does Offshoot|do you] [have|support|speak|offer]?", "What APIs are there?", "Is there an API?", "Does it have an API?", "How do I use the API?", "Which protocols does the server speak?", "Can I use it from [my program|Python|an app|code]?", "Does it have a REST API?", "apis?"),
     ("There is no API yet: an HTTP server is planned. Today Offshoot is a command-line program; `--json` makes its output easy to read for other programs.",), "None", ["planned"]),
    ("openai", ("Is [Offshoot|it|the server] OpenAI compatible?", "Can I use the OpenAI [API|client|library|SDK]?", "Does it [speak|support] the OpenAI API?", "How do I use [it with |]OpenAI[ clients|]?", "Tell me about the OpenAI API."),
     ("Not yet. Offshoot has no server today, so OpenAI clients cannot use it; an HTTP server is planned.",), "No", ["planned"]),
    ("anthropic", ("Does it [speak|support] the Anthropic API?", "Can I use [Claude Code|the Anthropic API|the Anthropic client|Anthropic clients]?", "Is it Anthropic compatible?", "Does Claude Code work with Offshoot?", "Tell me about the Anthropic API."),
     ("Not yet. Offshoot has no server today, so Claude Code and other Anthropic clients cannot use it; an HTTP server is planned.",), "No", ["planned"]),
    ("ollama", ("Does it [speak|support] the Ollama API?", "Can I use Ollama clients?", "Is it Ollama compatible?", "Is this Ollama?", "Is Offshoot like Ollama?", "Does it work with Ollama apps?", "Tell me about the Ollama API."),
     ("Offshoot is a program of its own. It has no server yet, so clients made for Ollama cannot use it; an HTTP server is planned.",), "No", ["planned"]),
    ("port", ("[Which|What] port [does Offshoot use|does the server use|is it|is used|is the default]?", "What is the [default |]port?", "On which port does it listen?", "Where does the server listen?", "What is the [URL|address] of the server?", "How do I change the port?", "What's the port number?", "port?", "which port"),
     ("There is no port, because there is no server yet. An HTTP server is planned.",), "None", ["no server"]),
    ("key", ("How do I [set|use] an API key?", "Is there [an API key|authentication|a password]?", "How do I [protect|secure] the server?", "Is the server [safe|secure]?", "Do I need an API key?", "What is --api-key-file?"),
     ("There is no server yet, so no key is needed. An HTTP server is planned.",), "No", ["no server"]),
    ("format", ("Which [model formats|formats] [are supported|does it read|does Offshoot read|can I use]?", "What is a model folder?", "What format do models [have|need]?", "Can it read [GGUF|safetensors|Hugging Face models|MLX models]?", "What does FOLDER mean?", "What is FOLDER?", "What is a MODEL?", "What files does a model need?"),
     ("A model is a folder in Hugging Face layout, from the Hub or converted for MLX, quantized or not: config.json, safetensors weights and tokenizer.json. GGUF is not read.",), "safetensors", ["Hugging Face"]),
    ("context", ("How long is your context?", "What is your context [length|size|window]?", "How much can you [read|remember]?", "How many tokens [can you read|fit|do you remember]?", "How long is your memory?", "How far back do you remember?"),
     ("I was trained on conversations of up to 4096 tokens, so I remember about that much of our conversation.",), "4096", ["4096"]),
    ("memory", ("Do you remember [past|other|old|earlier|previous] [conversations|chats]?", "Do you remember me[ from yesterday|]?", "Do you learn from [me|our chats|this conversation]?", "Will you remember this tomorrow?", "Do you store what I say?", "Did we talk before?", "Do you have a memory?"),
     ("I remember only what is in this conversation. In a new conversation I start from nothing.",), "No", ["this conversation"]),
    ("rust", ("What language is Offshoot written in?", "Is [Offshoot|it] written in Rust?", "Why Rust?", "In which [programming |]language is it [written|made]?", "Is it written in Python?", "What is the code written in?"),
     ("Offshoot is written in Rust, with a small C++ bridge to MLX.",), "Rust", ["Rust"]),
    ("licence", ("What is the licence?", "Which license does Offshoot have?", "Is Offshoot [free|open source|open-source]?", "What does [it|Offshoot] cost?", "Is it free[ to use|]?", "May I use it at work?", "How much does it cost?", "Under which license are you?", "Do I have to pay?"),
     ("Offshoot is free and open source, under the MIT or the Apache 2.0 licence, as you like.",), "Yes", ["MIT"]),
    ("batch", ("What is [continuous |]batching?", "Can it [serve|handle] many [users|requests|agents][ at once|]?", "How many requests can it handle?", "Does Offshoot [batch|support batching]?", "Can several people use it at once?", "How does it handle [many|concurrent|parallel] requests?", "Does it work with many agents?"),
     ("Not yet: batching across requests is planned. Today no forward pass serves two requests.",), "No", ["planned"]),
    ("json_out", ("Can you [write|answer in|output|produce|speak] JSON?", "Does Offshoot support [JSON schemas|structured output|JSON mode|grammars]?", "Can I get JSON[ output|]?", "How do I get JSON?", "What does --json do?", "What is structured output?"),
     ("Ask me for JSON and I will write it. `--json` makes the commands print JSON. Output after a JSON schema is planned.",), "Yes", ["JSON"]),
    ("tools", ("Can you [call|use] tools?", "What are tools?", "Does Offshoot support [tool calls|tools|function calling|functions]?", "What is a tool call?", "How do tool calls work?", "Can you call functions?"),
     ("When the prompt lists tools, I can write a tool call. Offshoot does not run tools or read the calls yet: that is planned.",), "Yes", ["tool"]),
    ("options", ("[Which|What] [options|flags] does [offshoot run|run|it] have?", "How do I set the temperature?", "How do I change the temperature?", "What is the seed for?", "How do I limit the [length|tokens|answer]?", "How do I set [a system prompt|top-p|the seed|max tokens]?", "What is --max-tokens?", "What does --temperature do?", "What does --verbose do?", "How do I set the system prompt?", "what flags are there"),
     ("`offshoot run` takes --max-tokens, --temperature, --top-p, --top-k, --min-p, --seed, --system, --json and --verbose.",), "--temperature", ["--temperature"]),
    ("env", ("Which environment variables are there?", "Can I use environment variables?", "What are OFFSHOOT_ variables?", "How do I configure Offshoot?", "Is there a config file?", "Where are the settings?"),
     ("Most flags have an environment variable that starts with OFFSHOOT_, for example OFFSHOOT_BACKEND for `--backend`.",), "OFFSHOOT_", ["OFFSHOOT_"]),
    ("stdin", ("Can I pipe [text|a file] into [it|offshoot|offshoot run]?", "Does it read stdin?", "How do I [script|automate] Offshoot?", "Can I use it in a script?", "How do I pass a file?", "Can it read from standard input?"),
     ("Yes. `offshoot run` also reads the prompt from standard input, and prints only data on standard output, so it fits into scripts.",), "Yes", ["standard input"]),
    ("private", ("Is my data [safe|private|sent anywhere]?", "Do you send [data|my data|anything] [to the internet|to a server|home|to the cloud]?", "Does it work offline?", "Do I need the internet?", "Is it private?", "Where does my data go?", "Are you online?", "Do you have internet access?", "Who can read [this|my messages]?", "Can you [browse|search] the [web|internet]?"),
     ("Everything runs on your own machine. I have no access to the internet, and nothing you type leaves this computer.",), "Yes", ["your own machine"]),
    ("blocks", ("What is a [KV |cache |]block?", "What are blocks?", "Why does the cache use blocks?", "How is the KV cache [stored|laid out]?", "What is a block table?", "How big is a block?", "What happens when [a conversation|two conversations] branch?"),
     ("Blocks are planned: keys and values in pieces of fixed size that conversations share. Today each conversation has one buffer of its own.",), "Planned", ["planned"]),
    ("scale", ("Can it use [several|two|many|multiple] [GPUs|machines|computers|Macs]?", "Does it scale[ out|]?", "What is tensor parallel?", "Can I use more than one GPU?", "Does Offshoot run on a cluster?", "Does it support multiple GPUs?"),
     ("Not yet: Offshoot uses one device today. More than one is planned.",), "No", ["planned"]),
    ("exact", ("Does the cache change the [answer|answers|output|result]?", "Is a cache hit exact?", "Does a cached answer differ?", "Is a hit the same as a miss?", "Are the results the same with the cache?", "Does caching [hurt|change] quality?"),
     ("There is no cache between requests yet, so it changes nothing. The plan is that a hit equals a miss: the same request gives the same tokens.",), "No", ["plan"]),
    ("repeat", ("Is the output deterministic?", "Is the answer always the same?", "How do I get the same answer again?", "Are the answers [repeatable|reproducible|random]?", "Why do you answer differently each time?", "How do I make answers repeatable?"),
     ("With `--seed N` an answer is repeatable; with `--temperature 0` the most likely token is always taken.",), "--seed", ["--seed"]),
    ("token", ("What is a token?", "What are tokens?", "What does token mean?", "How long is a token?", "What is tokenization?", "What is a tokenizer?"),
     ("A token is a small piece of text, often a word or a part of one. Models read and write tokens, not letters.",), None, ["piece"]),
    ("llm", ("What is a language model?", "What is an LLM?", "What does LLM mean?", "How does a language model work?", "How do you work?", "What is a model?", "How do you think?", "Do you understand [me|what you say]?"),
     ("A language model reads tokens and predicts the next one, again and again. That is all I do, too.",), None, ["predict"]),
    ("prefill", ("What is prefill?", "What is decode?", "What is the difference between prefill and decode?", "What is TTFT?", "What is time to first token?", "What are prefill and decode?"),
     ("Prefill reads the prompt, many tokens at once; decode writes the answer, one token after another. The time to first token is mostly prefill.",), None, ["Prefill"]),
    ("quit", ("How do I [quit|exit|leave|end|stop|close][ this chat| the chat| offshoot| this|]?", "How do I get out[ of here|]?", "quit", "exit", "How do I stop you?", "How do I stop an answer?"),
     ("Press Ctrl-C to stop an answer, and Ctrl-D to leave the chat.",), "Ctrl-D", ["Ctrl-"]),
    ("thinking", ("Can you think[ first|]?", "What is thinking[ mode|]?", "Do you think before you answer?", "What is enable_thinking?", "Are you a reasoning model?", "Can you reason?"),
     ("A little. With `--think` I write a short thought before the answer; by default I answer at once.",), "Yes", ["thought"]),
    ("agents", ("Is Offshoot good for [coding agents|agents]?", "Can I use it with [a coding agent|coding agents|agents]?", "What about coding agents?", "Does it work with [agents|coding agents|my agent]?"),
     ("Not yet. Agents need a server and a shared prefix cache, and both are planned.",), "No", ["planned"]),
    ("for_whom", ("Who is Offshoot for?", "Who uses Offshoot?", "Who should use [Offshoot|it]?", "What do people use Offshoot for?", "Is Offshoot for [me|beginners|developers]?"),
     ("Offshoot is for people who want to run language models on their own machine, from the command line.",), None, ["own machine"]),
    ("planned", ("What is [planned|missing|not there yet|next]?", "What comes next?", "What does Offshoot not [do|have][ yet|]?", "What are the plans[ for Offshoot|]?", "Is Offshoot finished?", "Is Offshoot ready?", "What is on the roadmap?", "Which features are missing?"),
     ("Planned and not there yet: the prefix cache, blocks and tiers, batching, an HTTP server, structured output and tool calls, and more than one device. ARCHITECTURE.md says what is there.",), None, ["prefix cache", "server"]),
    ("fit", ("Does a [big|large|70B] model fit[ in my memory|]?", "How much memory do I need?", "How much RAM [do I need|does it need]?", "Will my model fit?", "What happens under memory pressure?"),
     ("A model needs about as much memory as its files are big, plus the cache. `offshoot doctor` shows what your machine has; `offshoot quantize` makes models smaller.",), None, ["memory"]),
    ("web", ("Is there a [web interface|UI|web UI|GUI|user interface]?", "Does it have a web page?", "Can I chat in the browser?"),
     ("There is no web page. `offshoot run` opens a chat in the terminal; an HTTP server is planned.",), "No", ["terminal"]),
    ("system", ("Does [Offshoot|it] [run on|work on|support] Windows?", "Is there a Windows [version|build]?", "Which operating systems are supported?", "Does it run on [Ubuntu|Debian|Fedora|Arch]?", "Which systems does Offshoot run on?", "Can I use it on Windows?"),
     ("Linux on x86-64 is verified. macOS, Windows and Linux on Arm are written, but not verified yet.",), "Linux", ["Linux"]),
    ("pi", ("Can I run it on a [Raspberry Pi|phone|tablet|small computer|NAS]?", "Does it run on a [Raspberry Pi|phone|tablet]?", "Does Offshoot run on my phone?", "Does it run on an old computer?"),
     ("I cannot promise that. So far only Linux on x86-64 is verified; `offshoot doctor` checks your machine.",), None, ["doctor"]),
    ("docker", ("Is there a Docker image?", "Can I run it in Docker?", "Is there a container?", "Does it work in a container?", "Is there a package?"),
     ("I know of no ready image. Offshoot is two programs, offshoot and offshoot-runner, so a container for it is easy to write.",), None, ["offshoot-runner"]),
    ("version", ("What version is this?", "Which version do I have?", "What is the version?", "Which version of Offshoot is this?", "How new are you?", "What is the latest version?"),
     ("I do not know which version you have. `offshoot --version` prints it.",), None, ["--version"]),
    ("install", ("How do I install [Offshoot|it|this]?", "How do I build [Offshoot|it]?", "What do I need to build [it|Offshoot]?", "How do I compile Offshoot?", "Where can I download Offshoot?", "How do I update Offshoot?"),
     ("`cargo xtask run` builds everything and opens the chat; README.md says more. You need only Rust, a C++ compiler and python3 with pip.",), "cargo", ["README"]),
    ("author", ("Who is the author[ of Offshoot|]?", "Who [made|wrote|develops|maintains|created] Offshoot?", "Who is behind Offshoot?", "Who are the developers?", "Where is the source code?"),
     ("Offshoot is an open source project. Its README and the commit log say who works on it.",), None, ["open source"]),
    ("compare", ("Is Offshoot better than [Ollama|llama.cpp|vLLM|LM Studio]?", "Why not use [Ollama|llama.cpp|vLLM|LM Studio]?", "How does it compare to [Ollama|vLLM|llama.cpp|LM Studio]?", "What is special about Offshoot?", "What makes Offshoot different?", "What is new about Offshoot?"),
     ("I cannot judge that. Offshoot is young, and its prefix cache and its server are only planned. Measure for yourself with `offshoot bench`.",), None, ["offshoot bench"]),
]
BY_ID = {t[0]: t for t in TOPICS}
BARE = {  # what people type as if into a search box
    "what_is": "offshoot", "trie": "prefix trie|trie|the trie", "kv": "kv cache|KV cache|caching|prefix cache|cache", "checkpoint": "checkpoints|recurrent layers|gated delta", "tiers": "tiers|three tiers|cache tiers|eviction", "restart": "restart|after restart",
    "runner": "runner|offshoot-runner|crash", "mlx": "mlx|MLX", "backends": "backends|hardware|requirements|gpu|linux|mac", "metal": "metal", "cuda": "cuda|nvidia", "cpu": "cpu", "choose": "--backend|backend", "commands": "commands|usage|help commands|getting started", "apis": "api|APIs|the api", "openai": "openai|OpenAI API",
    "anthropic": "anthropic|claude code", "ollama": "ollama|ollama api", "port": "port|the port|url", "key": "api key|security|authentication", "format": "model format|formats|gguf|safetensors|model folder", "context": "context length|context window|context", "rust": "rust", "licence": "licence|license|price|open source", "batch": "batching|continuous batching|concurrency",
    "json_out": "json|json mode|structured output", "tools": "tools|tool calls|function calling", "options": "options|flags|temperature|seed", "env": "environment variables|config|settings", "stdin": "stdin|pipe|scripting", "private": "privacy|offline|internet", "blocks": "blocks|block table|paged cache", "scale": "multiple gpus|distributed|cluster",
    "exact": "determinism|a hit equals a miss", "token": "token|tokens", "llm": "llm|language model", "prefill": "prefill|decode|ttft", "bigger": "bigger model|other models|load model|more models", "size": "model size|parameters", "quit": "ctrl-c|ctrl-d", "agents": "agents|coding agents", "quantize": "quantization|4 bit|quantize", "bench": "benchmark|speed|performance", "web": "web ui|gui", "arch": "architecture|your architecture|hybrid", "families": "families|supported models|qwen|llama|gemma|gpt-oss", "logits": "logits", "serve": "serve|server|http server", "planned": "roadmap|plans|todo", "install": "install|build|download", "version": "version|--version", "docker": "docker", "system": "windows|operating system",
}
BARE = {k: tuple(v.split("|")) for k, v in BARE.items()}
MEAN = {"kv": ("KV cache", "kv cache", "caching", "prefix cache"), "trie": ("prefix trie", "trie"), "checkpoint": ("checkpoint", "checkpoints"), "tiers": ("tier", "three tiers"), "mlx": ("MLX",), "runner": ("runner", "offshoot-runner"), "blocks": ("block", "block table"), "batch": ("batching", "continuous batching"),
        "quantize": ("quantize", "quantization"), "prefill": ("prefill", "decode", "TTFT"), "format": ("safetensors", "FOLDER"), "diverge": ("diverging tokens", "diverge"), "scale": ("tensor parallel",), "thinking": ("thinking mode", "enable_thinking"), "tools": ("tool call", "function calling"), "token": ("token",), "llm": ("LLM",), "what_is": ("Offshoot",)}
CACHE = {"trie", "kv", "share", "diverge", "checkpoint", "tiers", "restart", "blocks"}
WHY = ("Why?", "Why is that [useful|good|important|so]?", "What is that good for?", "Why does that [matter|help]?", "And why?", "What is the [point|use|benefit|advantage]?", "So what?", "Why should I care?", "Is that useful?")
MORE = ("Tell me more[ about it| about that|].", "More[, please|].", "Explain more.", "[Can you|Please] explain that[ in detail| again|]?", "Go on.", "How does that work?", "What else?", "Give me more details.", "And then?", "How?", "Anything else?", "Continue.", "Give me an example.", "Can you say more?")
WHY_CACHE = "Work that was done once need not be done again, so answers will begin sooner, above all with long prompts."
WHY_OTHER = "It should make local models simple to use. For details I am too small; the documentation knows more."
MORE_ANSWER = "That is about all that I know of it. Ask me about another part of Offshoot, or read the documentation."
WRAPS = ("{q}", "{q}", "{q}", "{q}", "{q}", "{q}", "[Hey|Hi|Hello][,|!] {q}", "[Okay|OK|So|And|Well|Now], {l}", "I have a question: {l}", "[Please tell me|Tell me][:|,] {l}",
         "I'm new here. {q}", "{q} Please explain.", "[Quick|Another|One more] question: {l}", "{q} Thanks!", "I want to know: {l}", "{q} [In short, please.|Keep it short.|Briefly.]")


def question(c, topic):
    """A question for a topic; the evaluation asks only forms that training never saw."""
    r = c.r
    for _ in range(60):
        q = expand(r, pick(r, topic[1]))
        if held_out(q, 14) == c.test:
            break
    if len(q) > 12:
        w = expand(r, pick(r, WRAPS))
        q = w.replace("{q}", q).replace("{l}", q if q.startswith("I ") else q[0].lower() + q[1:])
    return q


def qa(c, topic=None):
    r = c.r
    topic = topic or pick(r, TOPICS)
    name, _, answers, short, keys = topic
    if short is not None:
        c.maybe_once(0.04)
    elif c.style == "oneword":
        return False
    q = question(c, topic)
    x = r.random()
    if not c.test and x < 0.06 and name in BARE:
        q = pick(r, BARE[name]) + pick(r, ("", "", "?", "."))
    elif not c.test and x < 0.11 and name in MEAN:
        q = expand(r, pick(r, ("What does {m} mean?", "What is meant by {m}?", "What is the meaning of {m}?", "I don't understand what {m} means.", "What do you mean by {m}?"))).replace("{m}", pick(r, MEAN[name]))
    answer = pick(r, answers)
    if name == "who" and c.persona:
        answer = pick(r, (f"I am {c.persona}.", f"My name is {c.persona}.", f"I am {c.persona}. How can I help?"))
        short, keys = c.persona, [c.persona]
    c.user(q.replace("{", "(").replace("}", ")"))
    follow = r.random() < 0.06 and c.once is None and c.style != "oneword"
    subject = {"who": "me", "maker": "me", "size": "me", "can": "what I can do", "cannot": "my limits"}.get(name, "Offshoot")
    c.bot(answer, short=short, _fill=False, check=("keywords", keys), think=pick(r, (f"The user asks about {subject}. I know this.", f"A question about {subject}.")))
    if follow:
        if r.random() < 0.45:
            c.user(pick(r, WHY))
            c.bot(WHY_CACHE if name in CACHE else WHY_OTHER, _fill=False, think="The user wants to know why.")
        else:
            c.user(pick(r, MORE))
            other = [a for a in answers if a != answer]
            c.bot(pick(r, other) if other else MORE_ANSWER, _fill=False, think="The user wants to know more.")

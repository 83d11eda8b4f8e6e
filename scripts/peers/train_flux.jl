# The paper's network in Flux.jl. Started by train_flux.py, with a folder of raw arrays:
#
#     julia --threads=THREADS train_flux.jl FOLDER EPOCHS BATCH_SIZE LEARNING_RATE SEED BLAS_THREADS
#
# Prints lines of "name value", and writes the loss of every minibatch into FOLDER/losses.

using Flux, LinearAlgebra, Random, Statistics

function build()
    Chain(
        Conv((3, 3), 1 => 6, relu),
        MaxPool((2, 2)),
        Conv((3, 3), 6 => 16, relu),
        MaxPool((2, 2)),
        Flux.flatten,
        Dense(400 => 84, relu),
        Dense(84 => 10),
    )
end

# numpy's (N, 28, 28) is Julia's (28, 28, 1, N), columns first, as Flux wants its images.
function load(folder, images, labels)
    y = reinterpret(Int64, read(joinpath(folder, labels)))
    x = Array{Float32}(undef, 28, 28, 1, length(y))
    read!(joinpath(folder, images), x)
    x, Flux.onehotbatch(y, 0:9)
end

function train!(model, x, y, epochs, batch_size, learning_rate; most = typemax(Int))
    state = Flux.setup(Descent(learning_rate), model)
    losses = Float32[]
    for epoch in 1:epochs
        for chosen in Iterators.partition(randperm(size(y, 2)), batch_size)
            xs, ys = x[:, :, :, chosen], y[:, chosen]
            loss, gradients = Flux.withgradient(m -> Flux.logitcrossentropy(m(xs), ys), model)
            Flux.update!(state, model, gradients[1])
            push!(losses, loss)
            length(losses) >= most && return losses
        end
    end
    losses
end

# (loss, accuracy), a thousand samples at a time.
function evaluate(model, x, y)
    pieces = [model(x[:, :, :, some]) for some in Iterators.partition(1:size(y, 2), 1000)]
    outputs = reduce(hcat, pieces)
    Flux.logitcrossentropy(outputs, y), mean(Flux.onecold(outputs) .== Flux.onecold(y))
end

function main(folder, epochs, batch_size, learning_rate, seed, blas_threads)
    BLAS.set_num_threads(blas_threads)
    Random.seed!(seed)
    loading = @timed (load(folder, "images", "labels"), load(folder, "test_images", "test_labels"))
    (x, y), (test_x, test_y) = loading.value
    # Compiles everything, on a throw-away network.
    train!(build(), x, y, 1, batch_size, learning_rate; most = 20)
    model = build()
    training = @timed train!(model, x, y, epochs, batch_size, learning_rate)
    test_loss, test_accuracy = evaluate(model, test_x, test_y)
    _, train_accuracy = evaluate(model, x, y)
    write(joinpath(folder, "losses"), join(training.value, "\n"))
    println("train_seconds ", training.time)
    println("allocated_bytes ", training.bytes)
    println("loading_allocated_bytes ", loading.bytes)
    println("peak_rss_bytes ", Sys.maxrss())
    println("train_accuracy ", train_accuracy)
    println("test_accuracy ", test_accuracy)
    println("test_loss ", test_loss)
    println("julia ", VERSION)
    println("flux ", pkgversion(Flux))
end

main(ARGS[1], parse(Int, ARGS[2]), parse(Int, ARGS[3]), parse(Float32, ARGS[4]), parse(Int, ARGS[5]), parse(Int, ARGS[6]))
